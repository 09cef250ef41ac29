"""Coordinate descent on scalar codes under the error of a layer's output: the exact discrete refinement of a rounding.

The error of rows W [O, n] decoded to Q is tr(E H E^T), E = W - Q. With all other columns fixed it is a parabola in
column j whose least value lies at ``q_j + (E H)_j / H_jj``; the code nearest to that is taken. No row's error rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sdvq_core.bitpack import pack
from sdvq_core.grouping import row_length
from sdvq_core.qtensor import QuantizedTensor

_WIDE = 128  # columns whose effect on the rest is gathered into one product


@dataclass(frozen=True, eq=False)
class Rounding:
    """Codes 0 .. top as whole numbers in float32 [O, n], which decode to codes * step + low; step and low [O, n]."""

    codes: Tensor
    step: Tensor
    low: Tensor
    top: int

    @classmethod
    def of(cls, coded: QuantizedTensor) -> Rounding:
        """The codes and ranges of a weight in the format `affine`."""
        n, size = row_length(coded.shape), int(coded.meta["group_size"])
        codes = coded.codes().reshape(coded.shape[0], -1)[:, :n].float()  # [O, n]
        step, low = (coded.tensors[key].float().repeat_interleave(size, 1)[:, :n] for key in ("scale", "offset"))
        return cls(codes, step, low, 2 ** int(coded.meta["bits"]) - 1)

    def stored(self, like: QuantizedTensor) -> QuantizedTensor:
        """The weight that `like` is, with these codes and ranges."""
        size = int(like.meta["group_size"])
        codes = pad(self.codes, (0, -self.codes.shape[1] % size)).to(torch.uint8)
        scale, offset = (ranges[:, ::size].half() for ranges in (self.step, self.low))  # [O, S]
        tensors = {"codes": pack(codes, int(like.meta["bits"])), "scale": scale, "offset": offset}
        return QuantizedTensor(like.format, like.shape, tensors, like.meta)

    @property
    def decoded(self) -> Tensor:
        """Q [O, n]."""
        return self.codes * self.step + self.low

    def with_codes(self, codes: Tensor) -> Rounding:
        """The same ranges with other codes [O, n]."""
        return Rounding(codes, self.step, self.low, self.top)

    def errors(self, rows: Tensor, moment: Tensor) -> Tensor:
        """Output error e H e^T of each row [O]."""
        error = rows - self.decoded
        return ((error @ moment) * error).sum(1)

    def or_better(self, other: Rounding, rows: Tensor, moment: Tensor) -> Rounding:
        """Row by row this one, or `other` where its output error is smaller."""
        change = (other.errors(rows, moment) < self.errors(rows, moment))[:, None]  # [O, 1]
        pairs = ((other.codes, self.codes), (other.step, self.step), (other.low, self.low))
        codes, step, low = (torch.where(change, new, old) for new, old in pairs)
        return Rounding(codes, step, low, self.top)


def descend(rows: Tensor, start: Rounding, moment: Tensor, sweeps: int) -> Rounding:
    """Sweeps over the columns of rows [O, n] under H [n, n], whose diagonal is above 0."""
    codes = start.codes.clone()
    pull = (rows - start.decoded) @ moment  # [O, n]
    for _ in range(sweeps):
        for first in range(0, rows.shape[1], _WIDE):
            part = slice(first, first + _WIDE)
            moves = _visit(codes[:, part], start.step[:, part], pull[:, part], moment[part, part], start.top)
            pull -= moves @ moment[part]
    return start.with_codes(codes)


def _visit(codes: Tensor, step: Tensor, pull: Tensor, moment: Tensor, top: int) -> Tensor:
    """Change codes [O, b] in place, column by column, under H [b, b] -> how far the weights moved [O, b]."""
    found, size, ahead = codes.T.clone(), step.T.contiguous(), pull.T.clone()  # [b, O]
    safe, moves = size.masked_fill(size == 0, 1), torch.zeros_like(ahead)
    for j, row in enumerate(moment):
        code = (found[j] + ahead[j] / (row[j] * safe[j])).round_().clamp_(0, top)
        moves[j] = (code - found[j]) * size[j]
        found[j] = code
        ahead.addr_(row, moves[j], alpha=-1)
    codes.copy_(found.T)
    return moves.T
