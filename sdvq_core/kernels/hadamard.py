"""The rotation of trellis-coded weights: signs from a seed, then a Walsh-Hadamard transform of blocks.

``y = (s * x) H_b / sqrt(b)`` on every run of b entries, b the largest power of two that divides the row. Orthonormal:
errors keep their size. Sums with many random signs look Gaussian whatever x was (QuIP#, arXiv 2402.04396). Additions in
a fixed order, so the same bits on every machine. `scramble` is the hash that stands in for stored random numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdvq_core.kernels.ways import attempt, warn_obstacle, way

_WORD = 0xFFFFFFFF


def scramble(numbers: Tensor) -> Tensor:
    """int64 [n] -> int64 [n] in [0, 2^32): MurmurHash3's last step, a bijection on 32-bit numbers that looks random."""
    mixed = numbers & _WORD
    mixed = ((mixed ^ (mixed >> 16)) * 0x85EBCA6B) & _WORD
    mixed = ((mixed ^ (mixed >> 13)) * 0xC2B2AE35) & _WORD
    return mixed ^ (mixed >> 16)


def hadamard_block(length: int) -> int:
    """b, the largest power of two that divides `length`; 1 for odd rows, which only get signs."""
    return length & -length


def rotate(rows: Tensor, seed: int) -> Tensor:
    """rows float32 [O, n] -> rotated rows [O, n]."""
    found = _on_gpu(rows, seed, True)
    return _hadamard(rows * _signs(rows, seed)) if found is None else found


def unrotate(rows: Tensor, seed: int) -> Tensor:
    """Inverse of `rotate`: H is its own inverse, and so are the signs."""
    found = _on_gpu(rows, seed, False)
    return _hadamard(rows).mul_(_signs(rows, seed)) if found is None else found


def _on_gpu(rows: Tensor, seed: int, signs_first: bool) -> Tensor | None:
    """`rotate`, or `unrotate`, by the Triton kernel; None where there is none for this."""
    if way(rows.device) != "triton" or not rows.numel() or rows.requires_grad:
        return None
    block = hadamard_block(rows.shape[1])

    def run() -> Tensor | str:
        from sdvq_core.kernels.hadamard_triton import MOST_BLOCK, rotated

        if rows.dtype != torch.float32 or block > MOST_BLOCK:
            return f"rotations of {block} entries in {rows.dtype}, where {MOST_BLOCK} in torch.float32 are the most"
        return rotated(rows, block, seed, signs_first)

    found = attempt(("triton", "rotated", str(rows.device), block, signs_first), run)
    if isinstance(found, str):
        warn_obstacle(rows.device, found)
    return found if isinstance(found, Tensor) else None


def _signs(rows: Tensor, seed: int) -> Tensor:
    """+1 or -1 for every column, [n]."""
    places = torch.arange(rows.shape[1], device=rows.device)
    return 1 - 2 * (scramble(places + (seed << 20)) >> 31).to(rows.dtype)


def _hadamard(rows: Tensor) -> Tensor:
    """Butterflies of width 1, 2, 4 … b / 2 on rows [O, n]."""
    block, width = hadamard_block(rows.shape[1]), 1
    if rows.dtype == torch.float32 and way(rows.device) == "numba":
        from sdvq_core.kernels.hadamard_numba import transform

        return transform(rows, block, math.sqrt(block))
    while width < block:
        pairs = rows.reshape(len(rows), -1, 2, width)  # [O, n / 2w, 2, w]
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        rows = torch.stack([first + second, first - second], 2).reshape(rows.shape)  # [O, n]
        width *= 2
    return rows / math.sqrt(block)
