"""Sums of codewords: numba where it can be had and the tensors are on the CPU, torch elsewhere, the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from sdvq_core.kernels.ways import way


def additive_decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """codes int [M, n], codebooks [M, K, d] -> sum over m of codebooks[m, codes[m]], [n, d].

    Differentiable in the codebooks. Codes must be below K: they are not checked.
    """
    if _compiled(codes, codebooks):
        found: Tensor = _Compiled.apply(codes, codebooks)  # type: ignore[no-untyped-call]
        return found
    return additive_decode_reference(codes, codebooks)


def additive_decode_reference(codes: Tensor, codebooks: Tensor) -> Tensor:
    """`additive_decode` in plain torch, on any device."""
    total = embedding(codes[0], codebooks[0])
    for code, book in zip(codes[1:], codebooks[1:], strict=True):
        total = total + embedding(code, book)
    return total


def additive_scatter(codes: Tensor, values: Tensor, entries: int) -> Tensor:
    """codes int [M, n] below K = entries, values [n, d] -> [M, K, d]: to every entry the sum of its users' values."""
    if _compiled(codes, values):
        from sdvq_core.kernels.additive_numba import scatter

        return scatter(codes, values, entries)
    zeros = torch.zeros(entries, values.shape[1], dtype=values.dtype, device=values.device)
    return torch.stack([zeros.index_add(0, code.long(), values) for code in codes])


def _compiled(codes: Tensor, codebooks: Tensor) -> bool:
    suitable = codebooks.dtype == torch.float32 and codes.dtype in (torch.uint8, torch.int32, torch.int64)
    return suitable and codes.device.type == codebooks.device.type == "cpu" and way(codes.device) == "numba"


class _Compiled(torch.autograd.Function):
    """numba's decode, and its gradient: to every entry the sum of what its users were given."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, codebooks: Tensor) -> Tensor:
        from sdvq_core.kernels.additive_numba import decode

        ctx.save_for_backward(codes)
        ctx.entries = codebooks.shape[1]
        return decode(codes, codebooks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        from sdvq_core.kernels.additive_numba import scatter

        (codes,) = ctx.saved_tensors
        return None, scatter(codes, gradients[0], ctx.entries)
