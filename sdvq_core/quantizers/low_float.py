"""`float`: low-bit floating point, sign, e exponent and m mantissa bits (arXiv 2306.05421), one scale per block.

Values are ``2^max(E, 1) * (min(E, 1) + M / 2^m)`` for exponent code E and mantissa code M: with subnormals, without
infinities or NaN, rescaled to [-1, 1]. The scale of a block, which stands for the format's bias, is searched for the
least error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.quantizers.base import Value, knob, register
from sdvq_core.quantizers.levels import LevelQuantizer

_SHRINKS = tuple(1 - 0.025 * step for step in range(21))


def float_levels(exponent: int, mantissa: int) -> Tensor:
    """All 2^(1 + e + m) values in [-1, 1], ascending; zero twice."""
    codes = torch.arange(2 ** (exponent + mantissa))
    power, fraction = codes >> mantissa, (codes & (2**mantissa - 1)) / 2**mantissa
    values: Tensor = torch.exp2(power.clamp_min(1)) * (power.clamp_max(1) + fraction)
    both = torch.cat([-values, values]) / values.max()
    return both.float().sort().values


@register("float", "Low-bit floating point")
@dataclass(frozen=True)
class LowFloat(LevelQuantizer):
    """Scalar codes on the values of a tiny floating-point format, E2M1 by default, with searched block scales."""

    bit_widths: ClassVar[tuple[float, ...]] = (3, 4, 5, 6)

    bits: int = knob(4, "Bits per weight", choices=(3, 4, 5, 6))
    exponent: int = knob(2, "Exponent bits", choices=(1, 2, 3))
    block_size: int = knob(64, "Weights per scale", choices=(16, 32, 64, 128, 256))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mantissa < 0:
            raise ConfigError(f"float.exponent must be at most bits - 1, got {self.exponent} of {self.bits}")

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        raise ConfigError("float takes bits as a knob")  # pragma: no cover - `make` never asks

    @property
    def mantissa(self) -> int:
        """m, what sign and exponent leave."""
        return self.bits - 1 - self.exponent

    @property
    def nominal_bits(self) -> float:
        return float(self.bits)

    @property
    def levels_name(self) -> str:
        return f"e{self.exponent}m{self.mantissa}"

    def levels(self) -> Tensor:
        return float_levels(self.exponent, self.mantissa)

    def shrinks(self) -> tuple[float, ...]:
        return _SHRINKS
