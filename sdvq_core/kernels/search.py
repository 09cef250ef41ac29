"""Codes nearest to points, of one codebook or several that add up: numba on the CPU, Triton on CUDA, torch elsewhere.

The torch reference keeps the `beam` best partial sums per point; adding entry c to one that leaves r over costs
``|r - c|^2 = |r|^2 - 2 r.c + |c|^2``, per element where the importance differs. N points, M codebooks of K entries of
d numbers, B hypotheses.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.functional import embedding

from sdvq_core.kernels.ways import attempt, warn_obstacle, way

CHUNK_NBYTES = 4 << 20  # of one block of the [N, K] distance matrix: stays near the cache, and off mmap
_BEAM_NBYTES = 8 << 20  # of one block of scores
_GPU_NBYTES = 1 << 30  # of a block on a GPU, where a small one is over before the next is launched


def chunks(count: int, row_nbytes: int, budget: int = CHUNK_NBYTES) -> Iterator[slice]:
    """Slices of range(count) whose rows of `row_nbytes` each stay within `budget` bytes."""
    step = max(1, budget // max(1, row_nbytes))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def nearest(points: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
    """points [N, d], centres [K, d], weights [N, d], [N, 1] or none -> index of the cheapest centre, int64 [N]."""
    found = _fast(points, centres[None], weights, 1)
    return nearest_reference(points, centres, weights) if found is None else found[0]


def nearest_reference(points: Tensor, centres: Tensor, weights: Tensor | None = None) -> Tensor:
    """`nearest` in plain torch, on any device."""
    found = torch.empty(len(points), dtype=torch.int64, device=points.device)
    squares = centres.square()  # [K, d]
    norms = squares.sum(1)  # [K]
    for part in chunks(len(points), 4 * len(centres), _budget(points, CHUNK_NBYTES)):
        if weights is None or weights.shape[1] == 1:
            cost = torch.addmm(norms, points[part], centres.T, alpha=-2)  # [n, K]
        else:
            cost = weights[part] @ squares.T - 2 * (weights[part] * points[part]) @ centres.T  # [n, K]
        found[part] = cost.argmin(1)
    return found


def beam_search(points: Tensor, codebooks: Tensor, weights: Tensor | None, beam: int) -> Tensor:
    """points [N, d], codebooks [M, K, d], weights [N, d], [N, 1] or none -> codes int64 [M, N]; B = `beam`."""
    found = _fast(points, codebooks, weights, beam)
    return beam_search_reference(points, codebooks, weights, beam) if found is None else found


def beam_search_reference(points: Tensor, codebooks: Tensor, weights: Tensor | None, beam: int) -> Tensor:
    """`beam_search` in plain torch, on any device."""
    found = torch.empty(len(codebooks), len(points), dtype=torch.int64, device=points.device)
    for part in chunks(len(points), 4 * beam * codebooks.shape[1], _budget(points, _BEAM_NBYTES)):
        found[:, part] = _search(points[part], codebooks, None if weights is None else weights[part], beam)
    return found


def _search(points: Tensor, codebooks: Tensor, weights: Tensor | None, beam: int) -> Tensor:
    count, d = points.shape
    entries = codebooks.shape[1]
    per_point = weights is None or weights.shape[1] == 1  # the same for every candidate
    mass = None if weights is None or per_point else (weights / weights.mean(1, keepdim=True))[:, None]  # [N, 1, d]
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


def _budget(points: Tensor, on_cpu: int) -> int:
    return on_cpu if points.device.type == "cpu" else _GPU_NBYTES


def _fast(points: Tensor, codebooks: Tensor, weights: Tensor | None, beam: int) -> Tensor | None:
    """`beam_search` by a compiled kernel; None where there is none for this, after one warning."""
    compiler, obstacle = way(points.device), ""
    if not len(points) or points.device != codebooks.device:
        return None
    if weights is not None and weights.shape[1] == 1:  # weights of a point change none of its choices
        weights = None
    if not points.dtype == codebooks.dtype == torch.float32:
        obstacle = f"points in {points.dtype} and codebooks in {codebooks.dtype}, where a search needs torch.float32"
    found: Tensor | str | None = obstacle
    if compiler != "torch" and not obstacle:
        metric = weights is not None
        kernel = (compiler, "beam_search", str(points.device), codebooks.shape, beam, metric)
        found = attempt(kernel, lambda: _found(compiler, points, codebooks, weights, beam))
    if isinstance(found, str):
        warn_obstacle(points.device, "" if compiler == "torch" else found)
    return found if isinstance(found, Tensor) else None


def _found(compiler: str, points: Tensor, codebooks: Tensor, weights: Tensor | None, beam: int) -> Tensor | str:
    """The codes, or why there are none."""
    kernels = import_module(f"sdvq_core.kernels.search_{compiler}")
    answer: Tensor | str = kernels.obstacle(codebooks, beam) or kernels.beam_search(points, codebooks, beam, weights)
    return answer
