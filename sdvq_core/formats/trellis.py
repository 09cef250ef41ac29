"""Trellis codes in a rotated basis: ``W = offset + unrotate(scale[i] * value[i, j])``, after QTIP (arXiv 2406.11235).

Rows are in `grouping.to_rows` order [O, n], rotated by random signs and block Hadamard transforms (`kernels.hadamard`).
The values of column 0, then column 1 … are one stream of O * n codes of k bits, cut into circles of T neighbours
(`circle_length`), each a tail-biting walk through the trellis (`kernels.trellis`): exactly k bits per weight, no start
state, no codebook. Down the columns, because error feedback asks for a column whose codes are chosen together.
meta: bits (k), state_bits (L), seed of the signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sdvq_core.bitpack import packed_nbytes, unpack
from sdvq_core.grouping import from_rows, row_length
from sdvq_core.kernels import Rows, code_table, trellis_nbytes, trellis_rows, unrotate
from sdvq_core.qtensor import Format, Meta, TensorSpec, register_format

_SHORT = 128  # places below which a circle's closing costs noticeably


def columns_per_circle(rows: int, length: int) -> int:
    """Columns that share a circle: the fewest that divide n = `length` and give 128 places with O = `rows`; or n."""
    enough = (count for count in range(1, length + 1) if length % count == 0 and rows * count >= _SHORT)
    return next(enough, length)


def circle_length(rows: int, length: int) -> int:
    """T of a weight with O = `rows`, n = `length`: whole columns, or an even part of one, of at least 128 places."""
    parts = (count for count in range(rows // _SHORT, 1, -1) if rows % count == 0)
    return rows * columns_per_circle(rows, length) // next(parts, 1)


def to_circles(rows: Tensor, places: int) -> Tensor:
    """rows [O, n] -> circles [S, T] of T = `places`, column after column."""
    return rows.T.reshape(-1, places)


def from_circles(circles: Tensor, rows: int) -> Tensor:
    """Inverse of `to_circles`: circles [S, T] -> rows [O, n] with O = `rows`."""
    return circles.reshape(-1, rows).T


@register_format
class Trellis(Format):
    """codes uint8 [packed], scale float16 [O, 1], offset float16 [1], zero unless the weights have a large mean."""

    name = "trellis"

    def spec(self, shape: Sequence[int], meta: Meta) -> dict[str, TensorSpec]:
        packed = packed_nbytes(shape[0] * row_length(shape), int(meta["bits"]))
        return {
            "codes": TensorSpec((packed,), torch.uint8, "codes"),
            "scale": TensorSpec((shape[0], 1), torch.float16, "scales"),
            "offset": TensorSpec((1,), torch.float16, "scales"),
        }

    def unpacked(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        """Rows [O, n] of unit scale, rotated back: a row's scale commutes with the rotation."""
        bits = int(meta["bits"])
        table = code_table(bits, int(meta["state_bits"]), tensors["scale"].device)
        size = (shape[0], row_length(shape))
        return unrotate(trellis_rows(tensors["codes"], bits, table, circle_length(*size), size), int(meta["seed"]))

    def decoding_nbytes(self, shape: Sequence[int], meta: Meta, dtype: torch.dtype, device: torch.device) -> int:
        return trellis_nbytes(Rows(shape[0], row_length(shape), dtype, device))

    def assemble(self, unpacked: Tensor, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        return from_rows((unpacked * tensors["scale"].float()).add_(tensors["offset"].float()), shape)

    def codes(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        return unpack(tensors["codes"], int(meta["bits"]), shape[0] * row_length(shape))[None]  # [1, n * O]

    def levels(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        """Values of the code in the rotated basis, around the offset; a weight is a signed mean of many of them."""
        table = code_table(int(meta["bits"]), int(meta["state_bits"]), tensors["scale"].device)
        return (tensors["offset"].float() + table * tensors["scale"].float().median()).sort().values
