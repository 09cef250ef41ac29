"""Weighted k-means (Lloyd's algorithm) on short vectors.

N points, K centres, d numbers per point. Weights are per element, [N, d]: the cost of centre c for point x is
``sum_j w_j (x_j - c_j)^2``, so a diagonal second moment of the layer's inputs can steer the fit; or per point, [N, 1],
which moves the means but not the choice of the nearest centre.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdvq_core.kernels import additive_scatter, nearest

_EARLY_POINTS = 1 << 17  # that the first iterations look at; centres need not be exact while they still move far
_LATE_ITERATIONS = 4  # each looks at twice as many, the last at all


def lloyd(
    points: Tensor, k: int, generator: torch.Generator, weights: Tensor | None = None, iterations: int = 12
) -> Tensor:
    """points [N, d] -> centres [k, d]; starts are random points, an emptied centre moves to the worst point.

    Of very many points the early iterations use a random part.
    """
    order = torch.randperm(len(points), generator=generator).to(points.device)
    points, weights = points[order], None if weights is None else weights[order]
    centres = points[torch.arange(k, device=points.device) % len(points)].clone()
    for left in reversed(range(iterations)):
        count = len(points) if left == 0 else _EARLY_POINTS << max(0, _LATE_ITERATIONS - left)
        part, mass = points[:count], None if weights is None else weights[:count]
        centres = _means(part, nearest(part, centres, mass), centres, mass)
    return centres


def _means(points: Tensor, found: Tensor, centres: Tensor, weights: Tensor | None) -> Tensor:
    mass = torch.ones_like(points[:, :1]) if weights is None else weights  # [N, d] or [N, 1]
    sums = additive_scatter(found[None], torch.cat([mass * points, mass], 1), len(centres))[0]
    total, share = sums.split([points.shape[1], mass.shape[1]], 1)
    moved = torch.where(share > 0, total / share.clamp_min(torch.finfo(share.dtype).tiny), centres)
    empty = (share.sum(1) == 0).nonzero().flatten()
    if len(empty) and len(empty) < len(points):
        error = (mass * (points - moved[found]).square()).sum(1)
        moved[empty] = points[error.topk(len(empty)).indices]
    return moved
