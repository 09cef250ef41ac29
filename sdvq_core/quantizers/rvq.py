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
from torch.nn.functional import embedding

from sdvq_core.errors import ConfigError
from sdvq_core.kmeans import chunks, lloyd
from sdvq_core.quantizers.base import Value, knob, register
from sdvq_core.quantizers.vector import SHARE, VectorQuantizer

_BOOKS = (1, 2, 3, 4, 5, 6, 7, 8)
_WIDTHS = (8, 7, 9, 6, 10, 5, 4)  # in the order in which `bits` prefers them
_CHUNK_NBYTES = 8 << 20  # of one block of scores: stays near the cache


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
        for _ in range(self.codebooks):
            found.append(lloyd(residual, 2**self.code_bits, generator, weights))
            books = torch.stack(found)  # [m, K, d]
            codes = beam_search(points, books, weights, self.beam)
            residual = points - sum(book[code] for book, code in zip(books, codes, strict=True))
        return torch.stack(found)  # [M, K, d]

    def encode(self, points: Tensor, codebooks: Tensor, weights: Tensor) -> Tensor:
        return beam_search(points, codebooks, weights, self.beam)


def beam_search(points: Tensor, codebooks: Tensor, weights: Tensor, beam: int) -> Tensor:
    """points [N, d], codebooks [M, K, d], weights [N, d] or [N, 1] -> codes int64 [M, N]."""
    found = torch.empty(len(codebooks), len(points), dtype=torch.int64, device=points.device)
    for part in chunks(len(points), 4 * beam * codebooks.shape[1], _CHUNK_NBYTES):
        found[:, part] = _search(points[part], codebooks, weights[part], beam)
    return found


def _search(points: Tensor, codebooks: Tensor, weights: Tensor, beam: int) -> Tensor:
    count, d = points.shape
    entries = codebooks.shape[1]
    mass = None if weights.shape[1] == 1 else (weights / weights.mean(1, keepdim=True))[:, None]  # [N, 1, d]
    residual = points[:, None]  # [N, B, d]
    path = torch.empty(count, 1, 0, dtype=torch.int64, device=points.device)  # [N, B, m]
    for stage, book in enumerate(codebooks):
        score = _scores(residual, book, mass)  # [N, B * K]
        keep = 1 if stage == len(codebooks) - 1 else min(beam, score.shape[1])
        best = _smallest(score, keep)  # [N, keep]
        parent, entry = best // entries, best % entries
        residual = residual.gather(1, parent[..., None].expand(-1, -1, d)) - embedding(entry, book)
        path = torch.cat([path.gather(1, parent[..., None].expand(-1, -1, stage)), entry[..., None]], 2)
    return path[:, 0].T  # [M, N]


def _scores(residual: Tensor, book: Tensor, mass: Tensor | None) -> Tensor:
    """residual [N, B, d], book [K, d], mass [N, 1, d] or none -> cost of each next entry [N, B * K], in one product.

    ``|r - c|^2 = [-2r, |r|^2, 1] . [c, 1, |c|^2]``, and with element weights ``[-2wr, w.r^2, w] . [c, 1, c^2]``.
    """
    one = torch.ones_like(residual[..., :1])
    weighted = residual if mass is None else residual * mass
    left = (weighted * residual).sum(2, keepdim=True)  # [N, B, 1]
    squares = book.square() if mass is not None else book.square().sum(1, keepdim=True)  # [K, d or 1]
    features = torch.cat([-2 * weighted, left, one if mass is None else mass.expand_as(residual)], 2)
    entries = torch.cat([book, torch.ones_like(book[:, :1]), squares], 1)
    return (features.flatten(0, 1) @ entries.T).reshape(len(residual), -1)


def _smallest(score: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` smallest per row; [N, S] -> [N, keep]."""
    return score.argmin(1, keepdim=True) if keep == 1 else score.topk(keep, 1, largest=False, sorted=False).indices
