"""`nf4`: 4-bit NormalFloat (QLoRA, arXiv 2305.14314): sixteen quantiles of a Gaussian, one scale per block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.quantizers.base import Value, knob, register
from sdvq_core.quantizers.levels import LevelQuantizer


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
class NormalFloat4(LevelQuantizer):
    """Sixteen fixed levels at the quantiles of a Gaussian, as in QLoRA and bitsandbytes; no fitting at all."""

    bit_widths = (4,)
    levels_name = "nf4"

    block_size: int = knob(64, "Weights per scale", choices=(32, 64, 128, 256))

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        if bits != 4:
            raise ConfigError(f"nf4.bits must be 4, got {bits:g}")
        return {}

    @property
    def nominal_bits(self) -> float:
        return 4.0

    def levels(self) -> Tensor:
        return normal_float()
