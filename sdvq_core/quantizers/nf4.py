"""`nf4`: 4-bit NormalFloat (QLoRA, arXiv 2305.14314): sixteen quantiles of a Gaussian, one scale per block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.bitpack import pack
from sdvq_core.errors import ConfigError
from sdvq_core.grouping import row_length, to_rows
from sdvq_core.kmeans import nearest
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import Quantizer, Value, knob, register
from sdvq_core.records import LayerStats


def normal_float(bits: int = 4) -> Tensor:
    """The 2^bits levels of NormalFloat in [-1, 1], ascending, with an exact zero: quantiles of N(0, 1), rescaled."""
    edge = (1 - 1 / 32 + 1 - 1 / 30) / 2  # QLoRA's offset: mean of the two outermost probabilities
    half = 2 ** (bits - 1)
    positive = torch.special.ndtri(torch.linspace(edge, 0.5, half + 1, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(edge, 0.5, half, dtype=torch.float64)[:-1])
    levels = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive.flip(0)])
    return (levels / levels.abs().max()).float()


@register("nf4", "NormalFloat 4-bit (NF4)")
@dataclass(frozen=True)
class NormalFloat4(Quantizer):
    """Sixteen fixed levels at the quantiles of a Gaussian, as in QLoRA and bitsandbytes; no fitting at all."""

    format = "codebook"
    bit_widths = (4,)

    block_size: int = knob(64, "Weights per scale", choices=(32, 64, 128, 256))

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        if bits != 4:
            raise ConfigError(f"nf4.bits must be 4, got {bits:g}")
        return {}

    @property
    def nominal_bits(self) -> float:
        return 4.0

    def layout(self, shape: Sequence[int]) -> dict[str, int | float | str]:
        block = min(self.block_size, row_length(shape))
        return {"codebooks": 1, "code_bits": 4, "group_size": 1, "scale_group": block, "shared": "nf4"}

    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        meta = self.layout(weight.shape)
        block = int(meta["scale_group"])
        rows = to_rows(weight.detach().float())  # [O, T * I]
        blocks = torch.nn.functional.pad(rows, (0, -rows.shape[1] % block)).reshape(
            len(rows), -1, block
        )  # [O, S, block]
        scale = blocks.abs().amax(2).half()  # [O, S]
        levels = normal_float().half().to(rows.device)[:, None]  # [16, 1]
        unit = blocks / scale.float().masked_fill(scale == 0, 1)[..., None]
        unit = unit.reshape(len(rows), -1)[:, : rows.shape[1]].reshape(-1, 1)  # [O * T * I, 1]
        codes = pack(nearest(unit, levels.float()), 4)[None]
        tensors = {"codes": codes, "codebook": levels[None], "scale": scale}
        return QuantizedTensor(self.format, tuple(weight.shape), tensors, meta)
