"""Running second moments: H = sum_t w_t sum x x^T / sum_t w_t R_t, over steps t with R_t rows each.

Sums run in float32 (one matrix product per forward, fused with its addition); the division is by a float64 total.
A forward with more than `limit` rows contributes one row from each of `limit` equal stretches, scaled up to R_t rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdvq_core.calibration.patches import Window, input_rows, row_count
from sdvq_core.store import BlockLayout

STRIP = 512  # columns; strips at and above the diagonal only, which nearly halves the work of a large matrix


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
        self.rows, self._weight = 0, 0.0
        self._sums = torch.zeros(layout.count, layout.block, layout.block, device=device)

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
        self._weight += weight * total

    def finish(self) -> Tensor:
        """H as blocks [K, b, b]; ends the gathering."""
        for start in range(0, self.layout.block, STRIP):
            lower = self._sums[:, start + STRIP :, start : start + STRIP]
            lower.copy_(self._sums[:, start : start + STRIP, start + STRIP :].mT)
        return self._sums.mul_(1 / self._weight)

    def _add(self, tiles: Tensor, scale: float) -> None:
        """Add scale * tiles^T tiles of tiles [K, R, b], in strips that leave out what symmetry gives."""
        if self.layout.block <= STRIP:
            self._sums.baddbmm_(tiles.mT, tiles, alpha=scale)
            return
        for sums, rows in zip(self._sums, tiles, strict=True):
            for start in range(0, self.layout.block, STRIP):
                strip = rows[:, start : start + STRIP]  # [R, strip]
                sums[start : start + STRIP, start:].addmm_(strip.T, rows[:, start:], alpha=scale)
