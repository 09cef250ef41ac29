"""`hqq`: scalar codes with zero-points fitted by half-quadratic splitting, robust to outliers, no data (HQQ, 2023).

Minimises |W - Q|_p^p with p < 1 over the offset of each run: with the error E shrunk to its outliers
``S(E) = sign(E) max(0, |E| - |E|^(p - 1) / b)``, the best offset is the mean of ``W - S(E) - scale * code``; b grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.bitpack import pack
from sdvq_core.grouping import to_rows
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import register
from sdvq_core.quantizers.rtn import RoundToNearest
from sdvq_core.records import LayerStats

_POWER, _FIRST, _GROWTH, _ROUNDS = 0.7, 10.0, 1.01, 20


@register("hqq", "Scalar, half-quadratic (HQQ)")
@dataclass(frozen=True)
class HalfQuadratic(RoundToNearest):
    """Uniform scalar codes over the full range, with offsets fitted by half-quadratic splitting; no data needed."""

    algorithm = 1

    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        meta = self.layout(weight.shape)
        size, top = int(meta["group_size"]), 2**self.bits - 1
        rows = to_rows(weight.detach().float())  # [O, n]
        missing = -rows.shape[1] % size
        runs = torch.cat([rows, rows[:, -1:].expand(-1, missing)], 1).reshape(len(rows), -1, size)  # [O, S, size]
        codes, scale, offset = _split(runs, top)
        tensors = {"codes": pack(codes.to(torch.uint8), self.bits), "scale": scale, "offset": offset}
        return QuantizedTensor(self.format, tuple(weight.shape), tensors, meta)


def _split(runs: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """runs [O, S, size] -> codes, float16 scale and offset [O, S]; the best state by squared error is kept."""
    low, high = runs.amin(2, keepdim=True), runs.amax(2, keepdim=True)
    scale = ((high - low) / top).half().float()  # [O, S, 1]
    step = scale.masked_fill(scale == 0, 1)
    offset, strength = low, _FIRST
    best_error = torch.full_like(low, torch.inf)
    best_codes, best_offset = torch.zeros_like(runs), low
    for _ in range(_ROUNDS):
        kept = offset.half().float()
        codes = ((runs - kept) / step).round().clamp(0, top)
        error = runs - codes * scale - kept
        loss = error.abs().pow(_POWER).sum(2, keepdim=True)
        better = loss < best_error
        best_error = torch.where(better, loss, best_error)
        best_codes, best_offset = torch.where(better, codes, best_codes), torch.where(better, kept, best_offset)
        unit = error / step  # in units of the step, so that one strength suits every layer
        shrunk = unit.sign() * (unit.abs() - unit.abs().clamp_min(1e-8).pow(_POWER - 1) / strength).clamp_min(0)
        offset = (runs - codes * scale - shrunk * step).mean(2, keepdim=True)
        strength *= _GROWTH
    return best_codes, scale[..., 0].half(), best_offset[..., 0].half()
