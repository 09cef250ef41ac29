"""Packed codes -> rows of weights, in one pass: numba on the CPU, Triton on a CUDA GPU, torch where neither can.

All give the numbers of the torch reference, to the last bit in float32. What a fast way cannot do, or fails to do, goes
to the reference with one warning that names the reason. O rows of n weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from sdvq_core.bitpack import unpack
from sdvq_core.kernels.additive import additive_decode_reference
from sdvq_core.kernels.trellis import trellis_decode
from sdvq_core.kernels.ways import attempt, warn_obstacle, way


def codebook_rows(
    codes: Tensor, bits: int, books: Tensor, scale: Tensor, run: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """codes uint8 [M, packed], books [M, K, d], scale [O, S] for runs of `run` weights (0: the row) -> [O, G * d].

    ``scale * sum_m books[m, code]``; packed holds O * G codes of `bits` bits per codebook, G = `groups`.
    """
    layer = _Layer("codebook", codes, bits, dtype, len(scale) * groups * books.shape[2])
    found = layer.fast(
        "codebook_rows", (codes, bits, books, scale, run, groups, dtype), obstacle(layer.way, books.shape[2], run)
    )
    return codebook_rows_reference(codes, bits, books, scale, run, groups, dtype) if found is None else found


def obstacle(way: str, size: int, run: int) -> str:
    """Why codes of d = `size` weights, scaled in runs of `run`, cannot be decoded that way, or ""."""
    if way == "numba" and run % size:
        return f"runs of {run} weights end inside a code"
    if way == "triton" and size & (size - 1):
        return f"codes of {size} weights, which is no power of two"
    return ""


def codebook_decoder(
    codes: Tensor, bits: int, books: Tensor, scale: Tensor, run: int, groups: int
) -> Callable[[torch.dtype], Tensor]:
    """`codebook_rows` of these arrays for every dtype; on the CPU prepared once, good while they stay as they are."""
    if way(codes.device) == "numba" and run % books.shape[2] == 0:
        from sdvq_core.kernels import decode_numba

        return decode_numba.codebook_decoder(codes, bits, books, scale, run, groups)
    return partial(codebook_rows, codes, bits, books, scale, run, groups)


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
    layer = _Layer("affine", codes, bits, dtype, scale.numel() * size)
    found = layer.fast("affine_rows", (codes, bits, scale, offset, size, dtype))
    return affine_rows_reference(codes, bits, scale, offset, size, dtype) if found is None else found


def affine_rows_reference(
    codes: Tensor, bits: int, scale: Tensor, offset: Tensor, size: int, dtype: torch.dtype
) -> Tensor:
    """`affine_rows` in plain torch, on any device."""
    unpacked = unpack(codes, bits, scale.numel() * size).reshape(*scale.shape, size)
    runs = unpacked * scale.float()[..., None] + offset.float()[..., None]  # [O, S, size]
    return runs.reshape(len(scale), -1).to(dtype)


def trellis_rows(codes: Tensor, bits: int, table: Tensor, places: int, shape: tuple[int, int]) -> Tensor:
    """codes uint8 [packed] of circles of T = `places` codes, table [2^L] -> float32 of `shape` [O, n]."""
    layer = _Layer("trellis", codes, bits, torch.float32, shape[0] * shape[1])
    found = layer.fast("trellis_rows", (codes, bits, table, places, shape))
    return trellis_rows_reference(codes, bits, table, places, shape) if found is None else found


def trellis_rows_reference(codes: Tensor, bits: int, table: Tensor, places: int, shape: tuple[int, int]) -> Tensor:
    """`trellis_rows` in plain torch, on any device."""
    circles = unpack(codes, bits, shape[0] * shape[1]).reshape(-1, places)  # [S, T]
    return trellis_decode(circles, bits, table).reshape(-1, shape[0]).T


@dataclass(frozen=True)
class _Layer:
    """What decides whether a fast way takes a layer's codes: format, device, width, dtype, number of weights."""

    kind: str
    codes: Tensor
    bits: int
    dtype: torch.dtype
    weights: int

    @property
    def way(self) -> str:
        return way(self.codes.device)

    def fast(self, name: str, arguments: tuple[Any, ...], obstacle: str = "") -> Tensor | None:
        """What function `name` of the fast way makes of `arguments`; None, after one warning, where it cannot."""
        found: Tensor | str | None = obstacle
        if self.way != "torch" and not obstacle:
            sizes = [part.shape for part in arguments[2:3] if isinstance(part, Tensor)]  # of codebooks or of scales
            settings = (self.bits, self.dtype, *(sizes if self.kind == "codebook" else []))
            found = attempt((self.way, name, str(self.codes.device), *settings), lambda: self._made(name, arguments))
        if isinstance(found, str):
            warn_obstacle(self.codes.device, found)
        return found if isinstance(found, Tensor) else None

    def _made(self, name: str, arguments: tuple[Any, ...]) -> Tensor | str:
        """The rows, or why there are none."""
        kernels = import_module(f"sdvq_core.kernels.decode_{self.way}")
        said: str | None = None
        if self.way == "triton":
            said = kernels.unsupported(self.kind, self.codes.device, self.dtype, self.bits, self.weights)
        made: Tensor | str = said or getattr(kernels, name)(*arguments)
        return made
