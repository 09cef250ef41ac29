"""Running second moments: H = sum_t w_t sum x x^T / sum_t w_t R_t, over steps t with R_t rows each.

Sums run in float32 (one matrix product per forward, fused with its addition); the division is by a float64 total.
Products fill strips at and above the diagonal; below it wait the sums of finished units of work (`units`).
A forward with more than `limit` rows contributes one row from each of `limit` equal stretches, scaled up to R_t rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sdvq_core.calibration.patches import Window, input_rows, row_count
from sdvq_core.store import BlockLayout

STRIP = 512  # columns; strips at and above the diagonal only, which nearly halves the work of a large matrix
_FLOAT32_NBYTES = 4


def working_nbytes(layout: BlockLayout, units: int = 1) -> int:
    """Bytes that a `SecondMoment` takes over so many units of work."""
    squares = _FLOAT32_NBYTES * layout.count * layout.block * min(layout.block, STRIP)
    return layout.nbytes + (squares if units > 1 else 0)


def even_sample(total: int, count: int, seed: int) -> Tensor:
    """`count` different numbers below `total` (at least `count`), rising: one at random from each equal stretch."""
    edges = torch.arange(count + 1) * total // count  # [count + 1]
    start, length = edges[:-1], edges.diff()
    random = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return start + (random * length).long().clamp(max=length - 1)  # [count]


class SecondMoment:
    """The sums of one distinct input. limit: most rows taken from one forward."""

    def __init__(self, layout: BlockLayout, window: Window | None, limit: int, device: torch.device) -> None:
        self.layout, self.window, self.limit = layout, window, limit
        self.rows, self.weight = 0, 0.0
        self._sums = torch.zeros(layout.count, layout.block, layout.block, device=device)
        self._squares: Tensor | None = None  # of finished units, what is on the diagonal [K, b, strip]
        self._finished = 0.0  # their weight

    def add(self, inputs: Tensor, weight: float, seed: int) -> None:
        """Take in a forward's inputs [.., I] or [B, I, h, w]."""
        total = row_count(inputs, self.window)
        if not total or not weight:
            return
        picks = even_sample(total, self.limit, seed).to(inputs.device) if total > self.limit else None
        rows = input_rows(inputs, self.window, picks)
        tiles = self.layout.tiles(rows)  # [K, R, b]
        self._add(tiles, weight * total / len(rows))
        self.rows += len(rows)
        self.weight += weight * total

    def fold(self) -> None:
        """End a unit of work: its sums are added to those of the units before, and the next one starts from zero."""
        if self._squares is None:
            self._squares = self._sums.new_zeros(self.layout.count, self.layout.block, min(self.layout.block, STRIP))
        for here, beyond in self._strips():
            square, upper = self._sums[:, here, here], self._sums[:, here, beyond]
            self._squares[:, here, : square.shape[-1]].add_(square)
            self._sums[:, beyond, here].add_(upper.mT)
            square.zero_()
            upper.zero_()
        self._finished, self.weight = self._finished + self.weight, 0.0

    @property
    def packed_length(self) -> int:
        return sum(self._sums[:, here, here.start :].numel() for here, _ in self._strips())

    def packed(self) -> Tensor:
        """The sums of this unit, as one vector for `take`."""
        return torch.cat([self._sums[:, here, here.start :].reshape(-1) for here, _ in self._strips()])

    def take(self, packed: Tensor, rows: int, weight: float) -> None:
        """Fold in a unit that another worker has summed."""
        start = 0
        for here, _ in self._strips():
            strip = self._sums[:, here, here.start :]
            strip.copy_(packed[start : start + strip.numel()].view(strip.shape))
            start += strip.numel()
        self.rows, self.weight = self.rows + rows, weight
        self.fold()

    def finish(self) -> Tensor:
        """H as blocks [K, b, b]; ends the gathering. Where units were folded, the last one must be, too."""
        for here, beyond in self._strips():
            square, upper, lower = (self._sums[:, a, b] for a, b in ((here, here), (here, beyond), (beyond, here)))
            if self._squares is None:
                lower.copy_(upper.mT)
            else:
                square.copy_(self._squares[:, here, : square.shape[-1]])
                upper.copy_(lower.mT)
        return self._sums.mul_(1 / (self._finished or self.weight))

    def _strips(self) -> Iterator[tuple[slice, slice]]:
        """(columns of a strip, columns beyond it)."""
        for start in range(0, self.layout.block, STRIP):
            stop = min(start + STRIP, self.layout.block)
            yield slice(start, stop), slice(stop, None)

    def _add(self, tiles: Tensor, scale: float) -> None:
        """Add scale * tiles^T tiles of tiles [K, R, b], in strips that leave out what symmetry gives."""
        if self.layout.block <= STRIP:
            self._sums.baddbmm_(tiles.mT, tiles, alpha=scale)
            return
        for sums, rows in zip(self._sums, tiles, strict=True):
            for start in range(0, self.layout.block, STRIP):
                strip = rows[:, start : start + STRIP]  # [R, strip]
                sums[start : start + STRIP, start:].addmm_(strip.T, rows[:, start:], alpha=scale)
