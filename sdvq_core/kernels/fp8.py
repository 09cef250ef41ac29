"""x @ W.T in float8 (e4m3) for codebook codes: an option, off except inside of `with fp8_products():`.

W[o] = s[o] * sums of codewords. The sums are decoded to float8, times one factor that takes the largest possible one to
the end of float8's range; rows of x are divided by their own largest number. `torch._scaled_mm` adds up in float32 and
scales rows and columns back. Half the bytes of a decoded weight, and an error of its own: 3 bits after the leading one.
It changes numbers, so that no mode, no command and nothing that keeps results uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from sdvq_core.kernels.decode import codebook_rows

FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FLOAT8).max
_TINY = 1e-30  # instead of zero
_CAPABILITY, _MULTIPLE = (8, 9), 16
_WANTED = ContextVar("fp8_products", default=False)


@contextmanager
def fp8_products() -> Iterator[None]:
    """Streaming Linear layers on a GPU multiply in float8 here where they can; one warning says why others do not."""
    before = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(before)


def wants_fp8() -> bool:
    """Whether this is inside of `fp8_products`."""
    return _WANTED.get()


def device_obstacle(device: torch.device) -> str:
    """Why `device` has no products in float8, or ""."""
    if device.type != "cuda":
        return f"products in float8 need a CUDA GPU, the weights are on {device.type}"
    have, needed = torch.cuda.get_device_capability(device), ".".join(map(str, _CAPABILITY))
    if have < _CAPABILITY:
        return f"products in float8 need compute capability {needed}, this GPU has {have[0]}.{have[1]}"
    return ""


def obstacle(x: Tensor, outputs: int, size: int, run: int, bias: Tensor | None) -> str:
    """Why x and a weight [O, I] = [`outputs`, `size`], scaled in runs of `run`, have no such product, or ""."""
    if run:
        return f"products in float8 need one scale per row, this layer has one for every {run} weights"
    if x.shape[-1] != size or size % _MULTIPLE or outputs % _MULTIPLE:
        return f"products in float8 need multiples of {_MULTIPLE}, a weight is [{outputs}, {x.shape[-1]}]"
    if x.dtype not in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(x.device.type):
        return f"products in float8 take torch.float16 and torch.bfloat16 without autocast, got {x.dtype}"
    given = [x] if bias is None else [x, bias]
    return "products in float8 have no gradient" if torch.is_grad_enabled() and any(_trains(it) for it in given) else ""


def fp8_linear(
    x: Tensor, codes: Tensor, bits: int, books: Tensor, scale: Tensor, groups: int, bias: Tensor | None = None
) -> Tensor:
    """x [R, G * d], codes uint8 [M, packed], books [M, 2^bits, d], scale [O, 1], bias [O] -> x @ W.T + bias, [R, O]."""
    factor = _LARGEST / books.float().abs().amax((1, 2)).sum().clamp_min(_TINY)
    weights = codebook_rows(codes, bits, books, factor.expand(len(scale), 1), 0, groups, FLOAT8)  # [O, G * d]
    top = x.abs().amax(1, keepdim=True).float().clamp_min(_TINY)  # [R, 1]
    found = torch._scaled_mm(
        (x * (_LARGEST / top)).to(FLOAT8),
        weights.T,
        scale_a=top / _LARGEST,
        scale_b=(scale.float() / factor).T.contiguous(),  # [1, O]
        out_dtype=torch.bfloat16,  # what rows with scales of their own have on a GPU
    )
    return found.to(x.dtype) if bias is None else found.to(x.dtype) + bias


def _trains(value: Tensor) -> bool:
    return value.requires_grad
