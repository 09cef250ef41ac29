"""`rvq`: residual vector quantization with beam search; greedy residual coding is worse than a scalar code at 3 bits.

Codebook m is fitted by k-means to what the first m - 1 leave over (residuals of the beam search, not of a greedy one).
The search keeps the `beam` best partial sums per group; the cost of adding entry c to a partial sum with residual r is
``|r - c|^2 = |r|^2 - 2 r.c + |c|^2``, per element where the importance differs. N points, B hypotheses, K entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.kernels import additive_decode, beam_search
from sdvq_core.kmeans import lloyd
from sdvq_core.quantizers.base import Value, knob, register
from sdvq_core.quantizers.vector import SHARE, VectorQuantizer

_BOOKS = (1, 2, 3, 4, 5, 6, 7, 8)
_WIDTHS = (8, 7, 9, 6, 10, 5, 4)  # in the order in which `bits` prefers them


@register("rvq", "Residual codebooks (RVQ, beam search)")
@dataclass(frozen=True)
class ResidualVQ(VectorQuantizer):
    """Several codebooks that add up, each fitted to what the earlier ones leave over; codes by beam search."""

    bit_widths = (1, 1.5, 2, 2.5, 3, 3.5, 4)

    codebooks: int = knob(3, "Codebooks", choices=_BOOKS)
    code_bits: int = knob(8, "Bits per code", choices=sorted(_WIDTHS))
    group_size: int = knob(8, "Weights per code", choices=(4, 8))
    beam: int = knob(8, "Beam width", low=1, high=32)
    share: str = knob("auto", "One codebook set per", choices=SHARE)

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        widths = [given["code_bits"]] if "code_bits" in given else _WIDTHS
        books = [given["codebooks"]] if "codebooks" in given else _BOOKS
        total = bits * float(given.get("group_size", 8))
        for width in widths:
            for count in books:
                if float(width) * float(count) == total:
                    return {"codebooks": count, "code_bits": width}
        raise ConfigError(f"rvq.bits must be codebooks * code_bits / group_size, as 1, 1.5, 2 … 4, got {bits:g}")

    @property
    def books(self) -> int:
        return self.codebooks

    @property
    def width(self) -> int:
        return self.code_bits

    def fit(self, points: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        found: list[Tensor] = []
        residual = points
        while len(found) < self.codebooks:
            if found:
                books = torch.stack(found)  # [m, K, d]
                residual = points - additive_decode(beam_search(points, books, weights, self.beam), books)
            found.append(lloyd(residual, 2**self.code_bits, generator, weights))
        return torch.stack(found)  # [M, K, d]

    def encode(self, points: Tensor, codebooks: Tensor, weights: Tensor) -> Tensor:
        return beam_search(points, codebooks, weights, self.beam)
