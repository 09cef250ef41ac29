"""Weighted k-means (Lloyd's algorithm) on short vectors, with memory bounded by chunks.

N points, K centres, d numbers per point. Weights are per element, [N, d]: the cost of centre c for point x is
``sum_j w_j (x_j - c_j)^2``, so a diagonal second moment of the layer's inputs can steer the fit; or per point, [N, 1],
which moves the means but not the choice of the nearest centre.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_NBYTES = 4 << 20  # of one block of the [N, K] distance matrix: stays near the cache, and off mmap
_EARLY_POINTS = 1 << 17  # that the first iterations look at; centres need not be exact while they still move far
_LATE_ITERATIONS = 4  # each looks at twice as many, the last at all


def chunks(count: int, row_nbytes: int, budget: int = CHUNK_NBYTES) -> Iterator[slice]:
    """Slices of range(count) whose rows of `row_nbytes` each stay within `budget` bytes."""
    step = max(1, budget // max(1, row_nbytes))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def nearest(points: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
    """points [N, d], centres [K, d], weights [N, d], [N, 1] or none -> index of the cheapest centre, int64 [N]."""
    found = torch.empty(len(points), dtype=torch.int64, device=points.device)
    squares = centres.square()  # [K, d]
    norms = squares.sum(1)  # [K]
    for part in chunks(len(points), 4 * len(centres)):
        if weights is None or weights.shape[1] == 1:
            cost = torch.addmm(norms, points[part], centres.T, alpha=-2)  # [n, K]
        else:
            cost = weights[part] @ squares.T - 2 * (weights[part] * points[part]) @ centres.T  # [n, K]
        found[part] = cost.argmin(1)
    return found


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
    mass = torch.ones_like(points) if weights is None else weights.expand_as(points)
    total = torch.zeros_like(centres).index_add_(0, found, mass * points)
    share = torch.zeros_like(centres).index_add_(0, found, mass)
    moved = torch.where(share > 0, total / share.clamp_min(torch.finfo(share.dtype).tiny), centres)
    empty = (share.sum(1) == 0).nonzero().flatten()
    if len(empty) and len(empty) < len(points):
        error = (mass * (points - moved[found]).square()).sum(1)
        moved[empty] = points[error.topk(len(empty)).indices]
    return moved
