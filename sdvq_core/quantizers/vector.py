"""What the vector quantizers have in common: normalised groups, private or shared codebooks, row scales.

Each row is divided by its root mean square before codebooks are fitted and multiplied again after; at the end the scale
is the least-squares fit of the decoded row. Groups weigh s_i^2 (and the inputs' mean squares, with statistics), so the
fit minimises the error of the weights themselves. O rows, G groups of d weights, M codebooks of K = 2^b entries.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.bitpack import pack
from sdvq_core.grouping import from_rows, to_groups
from sdvq_core.kernels import additive_decode
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import Encoder, Quantizer
from sdvq_core.records import LayerStats

SHARE = ("auto", "layer", "model")
_PRIVATE_BITS = 1 / 16  # `auto`: codebooks that cost more than this per weight are shared
_TRAINING_POINTS = 256  # per centre
_BLOCK = 1 << 20  # weights that are encoded at a time: what lies between stays small, and memory is used again
_LEAST = 1e-6  # importance of an input that was never seen, relative to the mean
SMALLEST_SCALE = 2.0**-24  # float16 above zero: the scale of a row that is zero, which so weighs next to nothing


@dataclass(frozen=True)
class VectorQuantizer(Quantizer):
    """Base: subclasses fit codebooks to points and encode points with them. They have knobs group_size and share."""

    format = "codebook"

    group_size: int
    share: str

    @property
    @abstractmethod
    def books(self) -> int:
        """M, the number of codebooks."""

    @property
    @abstractmethod
    def width(self) -> int:
        """b, bits per code."""

    @abstractmethod
    def fit(self, points: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """points [N, d], weights [N, d] or [N, 1] -> codebooks [M, K, d]."""

    @abstractmethod
    def encode(self, points: Tensor, codebooks: Tensor, weights: Tensor) -> Tensor:
        """points [N, d], weights [N, d] or [N, 1] -> codes int64 [M, N]."""

    @property
    def nominal_bits(self) -> float:
        return self.books * self.width / self.group_size

    def layout(self, shape: Sequence[int]) -> dict[str, int | float | str]:
        return {
            "codebooks": self.books,
            "code_bits": self.width,
            "group_size": self.group_size,
            "scale_group": 0,
            "shared": self._set_name(shape),
        }

    def _set_name(self, shape: Sequence[int]) -> str:
        cost = 16 * self.books * 2**self.width * self.group_size / math.prod(shape)  # bits per weight
        private = self.share == "layer" or (self.share == "auto" and cost <= _PRIVATE_BITS)
        return "" if private else f"{self.name}-{self.digest}"

    def fit_shared(self, weights: Sequence[Tensor]) -> Tensor:
        """One codebook set float16 [M, K, d], fitted to an even sample of the groups of all `weights`."""
        generator = _generator()
        quota = -(-_TRAINING_POINTS * 2**self.width // len(weights))
        drawn = [_sample(*_normalise(weight, self.group_size, None)[:2], quota, generator) for weight in weights]
        points, importance = (torch.cat(part) for part in zip(*drawn, strict=True))
        return self.fit(points, importance, generator).half()

    def bound_to(self, codebooks: Tensor) -> Encoder:
        return lambda weight, stats=None: self.quantize_with(weight, stats, codebooks)

    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        if self.sharing_key(weight.shape):
            return self.bound_to(self.fit_shared([weight]))(weight, stats)
        points, importance, _ = _normalise(weight, self.group_size, stats)
        generator = _generator()
        training = _sample(points, importance, _TRAINING_POINTS * 2**self.width, generator)
        return self.quantize_with(weight, stats, self.fit(*training, generator).half())

    def quantize_with(self, weight: Tensor, stats: LayerStats | None, codebooks: Tensor) -> QuantizedTensor:
        """Encode `weight` with given codebooks float16 [M, K, d]."""
        rows = max(1, _BLOCK // weight[0].numel())
        parts = [self._encode_rows(block, stats, codebooks.float()) for block in weight.split(rows)]
        codes, scale = (torch.cat(found, dim) for found, dim in zip(zip(*parts, strict=True), (1, 0), strict=True))
        return store_codes(codes, codebooks, scale, self.layout(weight.shape), weight.shape)

    def _encode_rows(self, weight: Tensor, stats: LayerStats | None, books: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int32 [M, O * G] and row scales [O, 1] of some rows."""
        points, importance, scale = _normalise(weight, self.group_size, stats)
        codes = self.encode(points, books, importance)  # [M, O * G]
        return codes.int(), _refit(points, additive_decode(codes, books), importance, scale)


def store_codes(
    codes: Tensor, codebooks: Tensor, scale: Tensor, meta: dict[str, int | float | str], shape: Sequence[int]
) -> QuantizedTensor:
    """codes [M, O * G], codebooks float16 [M, K, d], row scales [O, 1] -> the stored form."""
    packed = torch.stack([pack(code, int(meta["code_bits"])) for code in codes])
    tensors = {"codes": packed, "codebook": codebooks, "scale": scale.half()}
    return QuantizedTensor("codebook", tuple(shape), tensors, meta)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _normalise(weight: Tensor, d: int, stats: LayerStats | None) -> tuple[Tensor, Tensor, Tensor]:
    """weight -> unit-variance points [O * G, d], their importance [O * G, d] or [O * G, 1], row scales [O, 1]."""
    groups = to_groups(weight.detach().float(), d)  # [O, G, d]
    count = groups.shape[1]
    scale = groups.flatten(1).square().mean(1, keepdim=True).sqrt()  # [O, 1]
    scale = scale.half().float().clamp_min(SMALLEST_SCALE)
    points = (groups / scale[..., None]).reshape(-1, d)  # [O * G, d]
    if stats is None:
        return points, scale.square().expand(-1, count).reshape(-1, 1), scale
    columns = _relative(stats.column_weights.to(groups)).reshape(1, -1)  # [1, T * I]
    columns = to_groups(from_rows(columns, (1, *weight.shape[1:])), d).clamp_min(_LEAST)  # [1, G, d]
    importance = scale.square()[..., None] * columns  # [O, G, d]
    return points, importance.reshape(-1, d), scale


def _relative(columns: Tensor) -> Tensor:
    """Mean squares of the inputs over their mean; ones for a layer whose inputs were always zero."""
    mean = columns.mean()
    return columns / mean if mean > 0 else torch.ones_like(columns)


def _sample(points: Tensor, importance: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An even sample of at most `count` points with their importance."""
    if len(points) <= count:
        return points, importance
    chosen = torch.randperm(len(points), generator=generator)[:count].to(points.device)
    return points[chosen], importance[chosen]


def _refit(points: Tensor, decoded: Tensor, importance: Tensor, scale: Tensor) -> Tensor:
    """Row scales float16 [O, 1] that fit the decoded rows best in the weighted least-squares sense."""
    rows = len(scale)
    top = (importance * points * decoded).reshape(rows, -1).sum(1, keepdim=True)
    bottom = (importance * decoded.square()).reshape(rows, -1).sum(1, keepdim=True)
    return (scale * torch.where(bottom > 0, top / bottom.clamp_min(1e-30), 1)).half()
