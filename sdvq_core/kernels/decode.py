"""Packed codes -> rows of weights, in one pass: numba on the CPU, Triton on a CUDA GPU, torch where neither can.

All give the numbers of the torch reference, to the last bit in float32. What a fast way cannot do goes to the reference
with one warning that names the reason. O rows of n weights.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from sdvq_core.bitpack import unpack
from sdvq_core.kernels.additive import additive_decode_reference
from sdvq_core.kernels.trellis import trellis_decode

WAYS = {"cpu": "numba", "cuda": "triton"}


def way(device: torch.device) -> str:
    """What decodes on `device`: "numba", "triton" or "torch"."""
    found = WAYS.get(device.type, "")
    return found if found and find_spec(found) is not None else "torch"


def codebook_rows(
    codes: Tensor, bits: int, books: Tensor, scale: Tensor, run: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """codes uint8 [M, packed], books [M, K, d], scale [O, S] for runs of `run` weights (0: the row) -> [O, G * d].

    ``scale * sum_m books[m, code]``; packed holds O * G codes of `bits` bits per codebook, G = `groups`.
    """
    chosen = _way(codes, "" if run % books.shape[2] == 0 else f"runs of {run} weights end inside a code")
    if chosen == "numba":
        from sdvq_core.kernels import decode_numba

        return decode_numba.codebook_rows(codes, bits, books, scale, run, groups, dtype)
    return codebook_rows_reference(codes, bits, books, scale, run, groups, dtype)


def codebook_rows_reference(
    codes: Tensor, bits: int, books: Tensor, scale: Tensor, run: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """`codebook_rows` in plain torch, on any device."""
    unpacked = torch.stack([unpack(stream, bits, len(scale) * groups) for stream in codes])
    weights = additive_decode_reference(unpacked, books.float()).reshape(len(scale), -1)  # [O, G * d]
    factors = scale.float()
    if run:
        factors = factors.repeat_interleave(run, 1)[:, : weights.shape[1]]
    return (weights * factors).to(dtype)


def affine_rows(codes: Tensor, bits: int, scale: Tensor, offset: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """codes uint8 [packed], scale and offset [O, S] for runs of `size` weights -> [O, S * size].

    ``offset + scale * code``.
    """
    if _way(codes) == "numba":
        from sdvq_core.kernels import decode_numba

        return decode_numba.affine_rows(codes, bits, scale, offset, size).to(dtype)
    return affine_rows_reference(codes, bits, scale, offset, size, dtype)


def affine_rows_reference(
    codes: Tensor, bits: int, scale: Tensor, offset: Tensor, size: int, dtype: torch.dtype
) -> Tensor:
    """`affine_rows` in plain torch, on any device."""
    unpacked = unpack(codes, bits, scale.numel() * size).reshape(*scale.shape, size)
    runs = unpacked * scale.float()[..., None] + offset.float()[..., None]  # [O, S, size]
    return runs.reshape(len(scale), -1).to(dtype)


def trellis_rows(codes: Tensor, bits: int, table: Tensor, places: int, shape: tuple[int, int]) -> Tensor:
    """codes uint8 [packed] of circles of T = `places` codes, table [2^L] -> float32 of `shape` [O, n]."""
    if _way(codes) == "numba":
        from sdvq_core.kernels import decode_numba

        return decode_numba.trellis_rows(codes, bits, table, places, shape)
    return trellis_rows_reference(codes, bits, table, places, shape)


def trellis_rows_reference(codes: Tensor, bits: int, table: Tensor, places: int, shape: tuple[int, int]) -> Tensor:
    """`trellis_rows` in plain torch, on any device."""
    circles = unpack(codes, bits, shape[0] * shape[1]).reshape(-1, places)  # [S, T]
    return trellis_decode(circles, bits, table).reshape(-1, shape[0]).T


def _way(codes: Tensor, obstacle: str = "") -> str:
    """The way for `codes`, or "torch" after a warning when something stands against the fast one."""
    device = codes.device.type
    if device not in WAYS or (not obstacle and way(codes.device) != "torch"):
        return way(codes.device)
    _warn(obstacle or f"{WAYS[device]} is not installed")
    return "torch"


@cache
def _warn(reason: str) -> None:
    warnings.warn(f"weights are decoded by plain torch, which is slower: {reason}", stacklevel=4)
