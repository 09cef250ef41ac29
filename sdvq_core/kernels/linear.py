"""x @ W.T for packed codebook codes: W is decoded and then multiplied, or decoded inside the product.

Which is faster is measured once per machine (`choices`). Only where the fused kernel can win: on CUDA, one scale per
row, at most 512 rows of x, no gradient. Both give one product up to rounding: inside, codewords are rounded before the
scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sdvq_core.kernels import fp8
from sdvq_core.kernels.choices import CHOICES, Case
from sdvq_core.kernels.ways import attempt, warn_exact, way

MOST_ROWS = 512  # of x: beyond, decoding once per tile of x cannot pay (break-even is expected at 400 to 900)


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


def linear(x: Tensor, weight: Packed, bias: Tensor | None, decode: Callable[[], Tensor]) -> Tensor:
    """x [..., I] and a weight [O, I], which `decode` decodes to the dtype of x -> x @ W.T + bias, [..., O]."""

    def decoded() -> Tensor:
        return F.linear(x, decode(), bias)

    def fused() -> Tensor:
        from sdvq_core.kernels.linear_triton import codebook_linear

        flat = x.reshape(-1, x.shape[-1])
        out = codebook_linear(flat, weight.codes, weight.bits, weight.books, weight.scale, weight.groups, bias)
        return out.reshape(*x.shape[:-1], -1)

    found = _in_float8(x, weight, bias) if fp8.wants_fp8() else None
    if found is not None:
        return found
    if not fits(x, weight, bias):
        return decoded()
    if not x.is_cuda:
        return CHOICES.run(weight.case(x), fused, decoded, _may_time(x))
    with torch.cuda.device_of(x):
        return CHOICES.run(weight.case(x), fused, decoded, _may_time(x))


def _in_float8(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor | None:
    """The product in float8; None, after one warning, where there is none."""
    said = fp8.device_obstacle(x.device)
    size = weight.groups * weight.books.shape[2]
    said = said or fp8.obstacle(x, len(weight.scale), size, weight.run, bias)
    if said:
        warn_exact(said)
        return None

    def run() -> Tensor:
        flat, stored = x.reshape(-1, x.shape[-1]), (weight.codes, weight.bits, weight.books, weight.scale)
        return fp8.fp8_linear(flat, *stored, weight.groups, bias).reshape(*x.shape[:-1], -1)

    return attempt(("float8", *weight.case(x)), run, warn_exact) if x.numel() else None


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
