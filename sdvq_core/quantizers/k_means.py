"""`kmeans`: classical vector quantization, one codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.kernels import nearest
from sdvq_core.kmeans import lloyd
from sdvq_core.quantizers.base import Value, knob, register
from sdvq_core.quantizers.vector import SHARE, VectorQuantizer

_WIDTHS = (4, 5, 6, 8, 9, 10, 12)
_SIZES = (8, 4, 2, 1)


@register("kmeans", "Vector codebook (k-means)")
@dataclass(frozen=True)
class KMeans(VectorQuantizer):
    """One codebook of short vectors, fitted by weighted k-means: the simplest vector quantizer."""

    bit_widths = (1, 1.5, 2, 2.5, 3, 4, 5, 6)

    group_size: int = knob(4, "Weights per code", choices=sorted(_SIZES))
    code_bits: int = knob(12, "Bits per code", choices=_WIDTHS)
    share: str = knob("auto", "One codebook per", choices=SHARE)

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        sizes = [given["group_size"]] if "group_size" in given else _SIZES
        widths = [given["code_bits"]] if "code_bits" in given else _WIDTHS
        for size in sizes:
            for width in reversed(widths):
                if width == bits * float(size):
                    return {"group_size": size, "code_bits": width}
        raise ConfigError(f"kmeans.bits must be code_bits / group_size, one of {cls.bit_widths}, got {bits:g}")

    @property
    def books(self) -> int:
        return 1

    @property
    def width(self) -> int:
        return self.code_bits

    def fit(self, points: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        return lloyd(points, 2**self.code_bits, generator, weights)[None]  # [1, K, d]

    def encode(self, points: Tensor, codebooks: Tensor, weights: Tensor) -> Tensor:
        return nearest(points, codebooks[0], weights)[None]  # [1, N]
