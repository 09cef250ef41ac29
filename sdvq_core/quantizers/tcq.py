"""`tcq`: trellis-coded quantization of rotated weights (QTIP, arXiv 2406.11235; Marcellin and Fischer, 1990).

Rotated rows, divided by their root mean square, look like a unit Gaussian, for which the code is made; a Viterbi search
finds the codes, errors of a row weighing its mean square. With statistics the columns come one after another (a few
together in layers of few rows) and later ones make up for what earlier ones lost, H being rotated like the rows; at the
end each row's scale is the least-squares fit of its decoded values, under H if it is known. O rows of n weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.bitpack import pack
from sdvq_core.errors import ConfigError
from sdvq_core.formats.trellis import circle_length, columns_per_circle, from_circles, to_circles
from sdvq_core.grouping import row_length, to_rows
from sdvq_core.kernels import code_table, rotate, trellis_decode, viterbi
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import Quantizer, Value, knob, register
from sdvq_core.quantizers.feedback import DAMPING, damped, feed_back
from sdvq_core.records import LayerStats

_SEED = 0  # of the signs
_SPREAD = {1: 0.94, 2: 1.02, 3: 1.06, 4: 1.1}  # of the code's values that lose least on a unit Gaussian, by bits
_LARGE_MEAN = 1 / 8  # share of the energy above which the layer's mean is stored apart
_CHUNK_NBYTES = 64 << 20


@register("tcq", "Trellis-coded, rotated (TCQ)")
@dataclass(frozen=True)
class TrellisCoded(Quantizer):
    """A long trellis code for rotated weights, close to the rate-distortion bound and without a stored codebook."""

    format = "trellis"
    bit_widths = (1, 2, 3, 4)
    calibrated = True
    algorithm = 1

    bits: int = knob(3, "Bits per weight", choices=(1, 2, 3, 4))
    state_bits: int = knob(12, "Bits of trellis state", choices=(8, 10, 12, 14, 16))
    damping: float = knob(DAMPING, "Damping, share of the mean", low=0.0001, high=1.0)

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        raise ConfigError("tcq takes bits as a knob")  # pragma: no cover - `make` never asks

    @property
    def nominal_bits(self) -> float:
        return float(self.bits)

    def layout(self, shape: Sequence[int]) -> dict[str, int | float | str]:
        around = self.bits * circle_length(shape[0], row_length(shape))  # bits of a circle: a state cannot have more
        return {"bits": self.bits, "state_bits": min(self.state_bits, around), "seed": _SEED}

    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        meta = self.layout(weight.shape)
        offset = _large_mean(weight)
        rows = rotate(to_rows(weight.detach().float()) - offset.float(), _SEED)  # [O, n]
        spread = rows.square().mean(1, keepdim=True).sqrt()  # [O, 1]
        search = _Search(self.bits, code_table(self.bits, int(meta["state_bits"]), rows.device), spread)
        unit = rows / (spread * _SPREAD[self.bits]).masked_fill(spread == 0, 1)
        if stats is None:
            codes, moment = search.columns(unit), None
        else:
            moment = _rotated(stats.second_moment.to(rows))
            codes = search.with_feedback(unit, damped(moment, self.damping))
        values = from_circles(trellis_decode(codes, self.bits, search.table), len(rows))  # [O, n]
        scale = _refit(rows, values, moment)
        tensors = {"codes": pack(codes, self.bits), "scale": scale, "offset": offset}
        return QuantizedTensor(self.format, tuple(weight.shape), tensors, meta)


@dataclass(frozen=True, eq=False)
class _Search:
    """Viterbi search of unit-variance rows: k bits, table [2^L], row spreads [O, 1] whose squares the errors weigh."""

    bits: int
    table: Tensor
    spread: Tensor

    def columns(self, unit: Tensor) -> Tensor:
        """unit [O, n], whole circles -> codes uint8 [S, T], some columns at a time."""
        places, together = circle_length(*unit.shape), columns_per_circle(*unit.shape)
        step = max(1, _CHUNK_NBYTES // (8 * len(unit) * together)) * together
        return torch.cat([self._circles(part, places) for part in unit.split(step, 1)])

    def with_feedback(self, unit: Tensor, moment: Tensor) -> Tensor:
        """unit [O, n] -> codes uint8 [S, T] whose errors are small under the moment [n, n]."""
        places, together = circle_length(*unit.shape), columns_per_circle(*unit.shape)
        found: list[Tensor] = []

        def choose(start: int, ahead: Tensor, metric: Tensor) -> Tensor:
            found.append(self._circles(ahead[:, :together], places))
            return from_circles(trellis_decode(found[-1], self.bits, self.table), len(unit))

        feed_back(unit, moment, together, choose)
        return torch.cat(found)

    def _circles(self, unit: Tensor, places: int) -> Tensor:
        mean = self.spread.square().mean()
        mass = self.spread.square() / torch.where(mean > 0, mean, 1)
        return viterbi(to_circles(unit, places), to_circles(mass.expand_as(unit), places), self.table, self.bits)


def _large_mean(weight: Tensor) -> Tensor:
    """The mean of all weights as float16 [1] where it is most of them, as in a constant weight; else zero."""
    values = weight.detach().float()
    mean = values.mean()
    large = mean.square() > _LARGE_MEAN * values.square().mean()
    return torch.where(large, mean, 0).half().reshape(1)


def _rotated(moment: Tensor) -> Tensor:
    """H [n, n] of the inputs -> that of the rotated inputs."""
    return rotate(rotate(moment, _SEED).T.contiguous(), _SEED)


def _refit(rows: Tensor, values: Tensor, moment: Tensor | None) -> Tensor:
    """Row scales float16 [O, 1] for which scale * values lies nearest to the rows, under H where it is known."""
    seen = values if moment is None or not moment.any() else values @ moment
    top, bottom = (rows * seen).sum(1, keepdim=True), (values * seen).sum(1, keepdim=True)
    return torch.where(bottom > 0, top / bottom.clamp_min(1e-30), 0).half()
