"""x @ W.T for packed codebook codes: W is decoded and then multiplied, or decoded inside the product.

Which is faster depends on the GPU, the layer and the rows of x, so it is measured: when a `Case` is first seen both
ways are timed, and the faster is kept for this process. Only where the fused kernel can win: on CUDA, one scale per
row, at most 512 rows of x, no gradient. While a CUDA graph is captured or torch.compile traces nothing is timed, and
what is not known yet is decoded. Both give one product up to rounding: inside, codewords are rounded before the scale.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sdvq_core.kernels.ways import way
from sdvq_core.memory import is_out_of_memory

MOST_ROWS = 512  # of x: beyond, decoding once per tile of x cannot pay (break-even is expected at 400 to 900)
_REPEATS = 7
_COOLER_NBYTES, _COOLINGS = 128 << 20, 4  # written before each repeat: more than an L2, longer than a launch

Work = Callable[[], Tensor]


class Case(NamedTuple):
    """What the choice depends on: GPU, rows of x, O, G, then what the fused kernel is compiled for."""

    device: str
    rows: int
    outputs: int
    groups: int
    books: int
    bits: int
    size: int
    dtype: torch.dtype

    @property
    def kernel(self) -> tuple[object, ...]:
        return self[4:]


@dataclass(frozen=True, eq=False)
class Packed:
    """A stored weight [O, G * d]: codes uint8 [M, packed], books [M, 2^bits, d], scale [O, S] for runs of `run`."""

    codes: Tensor
    bits: int
    books: Tensor
    scale: Tensor
    run: int
    groups: int

    def case(self, x: Tensor) -> Case:
        """The case of a product with x [..., G * d]."""
        device = torch.cuda.get_device_properties(x.device).name if x.is_cuda else x.device.type
        books, _, size = self.books.shape
        rows = x.numel() // x.shape[-1]
        return Case(device, rows, len(self.scale), self.groups, books, self.bits, size, x.dtype)


class Choices:
    """The faster way of each case. seconds: how long each of some ways takes, measured in turns."""

    def __init__(self, seconds: Callable[[Sequence[Work]], Sequence[float]]) -> None:
        self._seconds = seconds
        self._fused: dict[Case, bool] = {}
        self._failed: set[tuple[object, ...]] = set()

    def run(self, case: Case, fused: Work, decoded: Work, may_time: bool) -> Tensor:
        """The answer of the faster way; of `decoded` where that is not known, or where `fused` failed."""
        if case.kernel not in self._failed:
            try:
                if self._wants_fused(case, fused, decoded, may_time):
                    return fused()
            except Exception as error:  # a compiler and a driver raise what they like
                self._note(case, error)
        return decoded()

    def known(self) -> dict[Case, bool]:
        """Every case met so far, and whether the fused way is taken."""
        return {case: fused and case.kernel not in self._failed for case, fused in self._fused.items()}

    def _wants_fused(self, case: Case, fused: Work, decoded: Work, may_time: bool) -> bool:
        if case not in self._fused and may_time:
            inside, apart = self._seconds((fused, decoded))
            self._fused[case] = inside < apart
        return self._fused.get(case, False)

    def _note(self, case: Case, error: Exception) -> None:
        if is_out_of_memory(error):  # says nothing about the kernel
            return
        self._failed.add(case.kernel)
        _warn((str(error).splitlines() or [""])[0] or type(error).__name__)


def gpu_seconds(ways: Sequence[Work]) -> list[float]:
    """Median seconds on the current GPU of each of `ways`, in turns, from a cold L2; launching costs are hidden."""
    cooler = torch.empty(_COOLER_NBYTES, dtype=torch.uint8, device=torch.device("cuda", torch.cuda.current_device()))
    spans: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in ways]
    for turn in range(_REPEATS + 1):
        for run, found in zip(ways, spans, strict=True):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            for _ in range(_COOLINGS):
                cooler.zero_()
            start.record()
            run()
            end.record()
            if turn:
                found.append((start, end))
    torch.cuda.synchronize()
    return [statistics.median(start.elapsed_time(end) for start, end in found) / 1e3 for found in spans]


CHOICES = Choices(gpu_seconds)


def linear(x: Tensor, weight: Packed, bias: Tensor | None, decode: Callable[[], Tensor]) -> Tensor:
    """x [..., I] and a weight [O, I], which `decode` decodes to the dtype of x -> x @ W.T + bias, [..., O]."""

    def decoded() -> Tensor:
        return F.linear(x, decode(), bias)

    def fused() -> Tensor:
        from sdvq_core.kernels.linear_triton import codebook_linear

        flat = x.reshape(-1, x.shape[-1])
        out = codebook_linear(flat, weight.codes, weight.bits, weight.books, weight.scale, weight.groups, bias)
        return out.reshape(*x.shape[:-1], -1)

    if not fits(x, weight, bias):
        return decoded()
    if not x.is_cuda:
        return CHOICES.run(weight.case(x), fused, decoded, _may_time(x))
    with torch.cuda.device_of(x):
        return CHOICES.run(weight.case(x), fused, decoded, _may_time(x))


def fits(x: Tensor, weight: Packed, bias: Tensor | None) -> bool:
    """Whether the fused kernel can take this product, and may win."""
    if way(x.device) != "triton" or weight.run or not _is_short(x, weight):
        return False
    size, given = weight.books.shape[2], [x] if bias is None else [x, bias]
    if size & (size - 1) or any(part.dtype != x.dtype for part in given) or torch.is_autocast_enabled(x.device.type):
        return False
    if torch.is_grad_enabled() and any(part.requires_grad for part in given):
        return False
    from sdvq_core.kernels.decode_triton import unsupported

    count = len(weight.scale) * weight.groups * size
    return unsupported("linear", x.device, x.dtype, weight.bits, count) is None


def _is_short(x: Tensor, weight: Packed) -> bool:
    """Whether x has rows of G * d numbers, and few of them."""
    if not x.numel() or x.shape[-1] != weight.groups * weight.books.shape[2]:
        return False
    return x.numel() // x.shape[-1] <= MOST_ROWS


def _may_time(x: Tensor) -> bool:
    """Whether work may be launched, awaited and thrown away now."""
    if torch.compiler.is_compiling():
        return False
    return not x.is_cuda or not torch.cuda.is_current_stream_capturing()


@cache
def _warn(reason: str) -> None:
    warnings.warn(f"a product decodes its weight apart from now on, the fused kernel failed: {reason}", stacklevel=6)
