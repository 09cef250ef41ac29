"""`gptq`: scalar codes with error feedback from the second moments of the inputs (arXiv 2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.bitpack import pack
from sdvq_core.grouping import to_rows
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import knob, register
from sdvq_core.quantizers.feedback import DAMPING, damped, feed_back
from sdvq_core.quantizers.rtn import RoundToNearest, search_range
from sdvq_core.records import LayerStats


@register("gptq", "Scalar with error feedback (GPTQ)")
@dataclass(frozen=True)
class Gptq(RoundToNearest):
    """Uniform scalar codes, column by column; later columns make up for the output error of earlier ones."""

    calibrated = True
    algorithm = 1

    damping: float = knob(DAMPING, "Damping, share of the mean", low=0.0001, high=1.0)

    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        if stats is None:
            return super().quantize(weight)
        meta = self.layout(weight.shape)
        size, top = int(meta["group_size"]), 2**self.bits - 1
        rows = to_rows(weight.detach().float())  # [O, n]
        moment = damped(stats.second_moment.to(rows), self.damping)
        runs = -(-rows.shape[1] // size)
        codes = torch.zeros(len(rows), runs * size, dtype=torch.uint8, device=rows.device)
        scale = torch.zeros(len(rows), runs, dtype=torch.float16, device=rows.device)
        offset = torch.zeros_like(scale)
        importance = moment.diagonal()

        def choose(start: int, ahead: Tensor, metric: Tensor) -> Tensor:
            """One column; at the first of a run its range is searched on the weights as they are now."""
            run, target = start // size, ahead[:, :1]
            if start % size == 0:
                scale[:, run], offset[:, run] = search_range(ahead[:, :size], importance[start : start + size], top)
            step, low = scale[:, run, None].float(), offset[:, run, None].float()
            code = ((target - low) / step.masked_fill(step == 0, 1)).round().clamp(0, top)
            codes[:, start] = code[:, 0].to(torch.uint8)
            return code * step + low

        feed_back(rows, moment, 1, choose)
        tensors = {"codes": pack(codes, self.bits), "scale": scale, "offset": offset}
        return QuantizedTensor(self.format, tuple(weight.shape), tensors, meta)
