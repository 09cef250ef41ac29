"""`aq`: additive quantization as VQDM does it (arXiv 2409.00492; AQLM, arXiv 2401.06118).

Codebooks start as those of residual k-means; then beam search over codes and exact least squares for the codebooks take
turns. With statistics the codes are searched under the error of the layer's *output*, tr(E H E^T): first with error
feedback (`feedback.py`), then in sweeps over the groups. For group J the best continuous value is
``q_J + (E H)_J H_JJ^-1``, and a candidate c costs ``|(that - c) R|^2`` with R R^T = H_JJ.
M codebooks of K entries, groups of d weights, N points, O rows, n = G * d columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sdvq_core.grouping import groups_per_row, taps, to_groups
from sdvq_core.kernels import additive_decode, beam_search
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import knob, register
from sdvq_core.quantizers.feedback import damped, feed_back
from sdvq_core.quantizers.rvq import ResidualVQ
from sdvq_core.quantizers.vector import SMALLEST_SCALE, store_codes
from sdvq_core.records import LayerStats

_RIDGE = 1e-4  # of the mean count of an entry, in the least squares of the codebooks


@register("aq", "Additive codebooks, calibrated (AQ, VQDM)")
@dataclass(frozen=True)
class AdditiveQuantization(ResidualVQ):
    """Several codebooks that add up, fitted jointly; codes searched for the least error of the layer's output."""

    calibrated = True
    algorithm = 1

    rounds: int = knob(6, "Rounds of search and least squares", low=0, high=100)
    sweeps: int = knob(2, "Sweeps over the groups after feedback", low=0, high=20)

    def fit(self, points: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        books = super().fit(points, weights, generator)  # [M, K, d]
        mass = weights.mean(1)  # [N]
        best, least = books, torch.inf
        for _ in range(self.rounds):
            codes = beam_search(points, books, weights, self.beam)
            loss = float((mass[:, None] * (points - additive_decode(codes, books)).square()).sum())
            if loss < least:
                best, least = books, loss
            books = least_squares(points, codes, mass, books)
        codes = beam_search(points, books, weights, self.beam)
        loss = float((mass[:, None] * (points - additive_decode(codes, books)).square()).sum())
        return books if loss < least else best

    def quantize_with(self, weight: Tensor, stats: LayerStats | None, codebooks: Tensor) -> QuantizedTensor:
        if stats is None:
            return super().quantize_with(weight, None, codebooks)
        rows = to_groups(weight.detach().float(), self.group_size).flatten(1)  # [O, n]
        moment = damped(padded_moment(stats.second_moment.to(rows), weight.shape, self.group_size))
        scale = rows.square().mean(1, keepdim=True).sqrt().half().float().clamp_min(SMALLEST_SCALE)  # [O, 1]
        search = _Search(rows / scale, moment, codebooks.float(), self.beam)
        for sweep in range(self.sweeps):
            search.sweep()
            if sweep == 0:
                scale = search.rescale(scale, rows)
        scale = search.rescale(scale, rows)
        return store_codes(search.codes.flatten(1), codebooks, scale, self.layout(weight.shape), weight.shape)


def least_squares(points: Tensor, codes: Tensor, mass: Tensor, books: Tensor) -> Tensor:
    """points [N, d], codes [M, N], mass [N], books [M, K, d] -> the codebooks that fit best with these codes.

    Entries that no point uses stay where they are.
    """
    count, entries = books.shape[:2]
    places = codes + entries * torch.arange(count, device=codes.device)[:, None]  # [M, N]
    gram = torch.zeros(count * entries, count * entries, dtype=torch.float64, device=points.device)
    flat, double = gram.view(-1), mass.double()
    for one in places:
        for other in places:
            flat.index_add_(0, one * len(gram) + other, double)
    target = torch.zeros(len(gram), points.shape[1], dtype=torch.float64, device=points.device)
    for one in places:
        target.index_add_(0, one, double[:, None] * points.double())
    ridge = _RIDGE * gram.diagonal().mean()
    old = books.reshape(len(gram), -1).double()
    eye = torch.eye(len(gram), dtype=torch.float64, device=points.device)
    solved: Tensor = torch.linalg.solve(gram + ridge * eye, target + ridge * old)  # pulled towards where they were
    return solved.float().contiguous().reshape(books.shape)  # a solver answers column by column


def padded_moment(moment: Tensor, shape: Sequence[int], d: int) -> Tensor:
    """H [n, n] of a layer's inputs -> the same in the order of `to_groups`, zero where a group is padded."""
    missing = -shape[1] % d
    if not missing:
        return moment
    count, channels = taps(shape), shape[1]
    split = moment.reshape(count, channels, count, channels)
    size = groups_per_row(shape, d) * d
    padded: Tensor = pad(split, (0, missing, 0, 0, 0, missing)).reshape(size, size)
    return padded


class _Search:
    """Codes [M, O, G] of normalised rows [O, n] under H [n, n], and what they decode to."""

    def __init__(self, rows: Tensor, moment: Tensor, books: Tensor, beam: int) -> None:
        self.rows, self.moment, self.books, self.beam = rows, moment, books, beam
        self.d = books.shape[2]
        self.codes = torch.empty(len(books), len(rows), rows.shape[1] // self.d, dtype=torch.int64, device=rows.device)
        self.decoded = feed_back(rows, moment, self.d, self._choose)  # [O, n]

    def _choose(self, start: int, ahead: Tensor, metric: Tensor) -> Tensor:
        codes = self._nearest(ahead[:, : self.d], metric)
        self.codes[:, :, start // self.d] = codes
        return additive_decode(codes, self.books)

    def _nearest(self, target: Tensor, metric: Tensor) -> Tensor:
        """Codes [M, O] that make |(target - decoded) metric|^2 small; target [O, d], metric [d, d]."""
        return beam_search(target @ metric, self.books @ metric, None, self.beam)

    def sweep(self) -> None:
        """Search every group again, given all others; no row's error rises."""
        error = self.rows - self.decoded
        pull = error @ self.moment  # [O, n]
        blocks = self._blocks()
        factors = torch.linalg.cholesky(blocks)  # [G, d, d]
        for group, (block, factor) in enumerate(zip(blocks, factors, strict=True)):
            part = slice(group * self.d, (group + 1) * self.d)
            old = self.decoded[:, part]
            step = torch.cholesky_solve(pull[:, part].T, factor).T  # to the best continuous value
            codes = self._nearest(old + step, factor)
            move = additive_decode(codes, self.books) - old  # [O, d]
            gain = (2 * pull[:, part] * move).sum(1) - ((move @ block) * move).sum(1)  # [O]
            better = gain > 0
            move = torch.where(better[:, None], move, 0)
            self.codes[:, :, group] = torch.where(better, codes, self.codes[:, :, group])
            self.decoded[:, part] += move
            pull -= move @ self.moment[part]

    def _blocks(self) -> Tensor:
        groups = self.moment.shape[0] // self.d
        grid = self.moment.reshape(groups, self.d, groups, self.d)
        return torch.stack([grid[g, :, g] for g in range(groups)])  # [G, d, d]

    def rescale(self, scale: Tensor, rows: Tensor) -> Tensor:
        """Row scales [O, 1] that fit the decoded rows best under H; the normalised rows follow."""
        ahead = self.decoded @ self.moment
        top, bottom = (rows * ahead).sum(1, keepdim=True), (self.decoded * ahead).sum(1, keepdim=True)
        fitted = torch.where((bottom > 0) & (top > 0), top / bottom.clamp_min(1e-30), scale)
        fitted = fitted.half().float().clamp_min(SMALLEST_SCALE)
        self.rows = rows / fitted
        return fitted
