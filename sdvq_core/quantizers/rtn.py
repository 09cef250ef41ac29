"""`rtn`: uniform scalar codes, rounded to nearest, with a clipping range searched per group for the least error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.bitpack import pack
from sdvq_core.errors import ConfigError
from sdvq_core.grouping import row_length, to_rows
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import Quantizer, Value, knob, register
from sdvq_core.records import LayerStats

_BLOCK = 1 << 19  # weights that are searched at a time: what lies between stays in the caches
_SHRINKS = tuple(1 - 0.025 * step for step in range(21))  # of the min-max range, tried from whole to half


@register("rtn", "Scalar, round to nearest")
@dataclass(frozen=True)
class RoundToNearest(Quantizer):
    """Uniform scalar quantization in groups, each with the clipping range that loses least: the usual baseline."""

    format = "affine"
    bit_widths = (2, 3, 4, 5, 6, 7, 8)
    algorithm = 1

    bits: int = knob(4, "Bits per weight", choices=(2, 3, 4, 5, 6, 7, 8))
    group_size: int = knob(64, "Weights per scale", choices=(16, 32, 64, 128, 256))

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        raise ConfigError("rtn takes bits as a knob")  # pragma: no cover - `make` never asks

    @property
    def nominal_bits(self) -> float:
        return float(self.bits)

    def layout(self, shape: Sequence[int]) -> dict[str, int | float | str]:
        return {"bits": self.bits, "group_size": min(self.group_size, row_length(shape))}

    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        meta = self.layout(weight.shape)
        size = int(meta["group_size"])
        rows = to_rows(weight.detach().float())  # [O, T * I]
        missing = -rows.shape[1] % size
        importance = torch.ones(rows.shape[1], device=rows.device) if stats is None else stats.column_weights
        importance = torch.nn.functional.pad(importance.to(rows), (0, missing)).reshape(1, -1, size)  # [1, S, size]
        padded = torch.cat([rows, rows[:, -1:].expand(-1, missing)], 1)
        runs = padded.reshape(len(rows), -1, size)  # [O, S, size]
        rows_at_once = max(1, _BLOCK // runs[0].numel())
        found = [_search(part, importance, 2**self.bits - 1) for part in runs.split(rows_at_once)]
        codes, scale, offset = (torch.cat(parts) for parts in zip(*found, strict=True))
        tensors = {"codes": pack(codes, self.bits), "scale": scale, "offset": offset}
        return QuantizedTensor(self.format, tuple(weight.shape), tensors, meta)


def search_range(run: Tensor, importance: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """run [O, size], importance [size] -> float16 scale and offset [O] of the codes 0 .. top with the least error."""
    _, scale, offset = _search(run[:, None], importance[None, None], top)
    return scale[:, 0], offset[:, 0]


def _search(runs: Tensor, importance: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """runs [O, S, size] -> codes of the same shape and float16 scale, offset [O, S] with the least weighted error."""
    low, high = runs.amin(2), runs.amax(2)  # [O, S]
    middle, half = (low + high) / 2, (high - low) / 2
    best_error = torch.full_like(low, torch.inf)
    best_codes = torch.zeros_like(runs, dtype=torch.uint8)
    best_scale, best_offset = low.half(), low.half()
    for shrink in _SHRINKS:
        scale = (2 * half * shrink / top).half()
        offset = (middle - half * shrink).half()
        step = scale.float().masked_fill(scale == 0, 1)[..., None]
        codes = ((runs - offset.float()[..., None]) / step).round_().clamp_(0, top)
        decoded = codes * scale.float()[..., None] + offset.float()[..., None]
        error = (importance * (decoded - runs).square_()).sum(2)  # [O, S]
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_codes = torch.where(better[..., None], codes.to(torch.uint8), best_codes)
        best_scale, best_offset = torch.where(better, scale, best_scale), torch.where(better, offset, best_offset)
    return best_codes, best_scale, best_offset
