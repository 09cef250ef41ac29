"""The reference: plain torch, any device."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding


def additive_decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """codes int [M, n], codebooks [M, K, d] -> sum over m of codebooks[m, codes[m]], [n, d]."""
    total = embedding(codes[0], codebooks[0])
    for code, book in zip(codes[1:], codebooks[1:], strict=True):
        total += embedding(code, book)
    return total
