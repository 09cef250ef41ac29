"""Distances between two sets of images, seen through a judge's embeddings x [N, D] and y [M, D].

frechet = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) with means m and covariances C (Dowson and Landau 1982;
Heusel et al. 2017 on Inception features). cmmd = 1000 MMD^2 with the kernel exp(-|x - y|^2 / (2 sigma^2)), sigma = 10,
on unit CLIP embeddings (Jayasumana et al. 2024, arXiv 2401.09603).

Both look at sets, not at pairs, and say little of small ones: with N <= D the covariances are singular and the Fréchet
distance is far from its limit, even between two sets of one model. Read them beside the same number for another seed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdvq_core.errors import ConfigError

SIGMA, SCALE = 10.0, 1000.0  # of the paper, section 4


def frechet(x: Tensor, y: Tensor) -> float | None:
    """Fréchet distance of two sets of embeddings, by torchmetrics; None where a set has fewer than two."""
    _check(x, y)
    if min(len(x), len(y)) < 2:
        return None
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsTheyAre(x.shape[1]))
    metric.update(x.double(), real=True)
    metric.update(y.double(), real=False)
    return float(metric.compute().clamp_min(0))  # NaN stays NaN


def cmmd(x: Tensor, y: Tensor) -> float | None:
    """CMMD of two sets of unit embeddings: means over all pairs, as in the paper's code; None for an empty set."""
    _check(x, y)
    if not len(x) or not len(y):
        return None
    first, second = x.double(), y.double()  # kernels are within 2 % of 1
    own = _kernel_mean(first, first) + _kernel_mean(second, second)
    return max(0.0, SCALE * (own - 2 * _kernel_mean(first, second)))


class _AsTheyAre(nn.Module):
    """What torchmetrics takes for a feature extractor: embeddings in, embeddings out."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings


def _kernel_mean(x: Tensor, y: Tensor) -> float:
    squared = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T  # [N, M]
    return float(torch.exp(-squared / (2 * SIGMA**2)).mean())


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ConfigError(f"embeddings must be [N, D] and [M, D], got {list(x.shape)} and {list(y.shape)}")
