"""How far a compression is, how fast it goes, and how long it will take."""

from __future__ import annotations

import math
import time

from sdvq_core.compress import LayerResult
from sdvq_core.jobs import Progress
from sdvq_core.plan import CompressionPlan


class Pace:
    """Progress of a run, with its rate and the time left, both judged by the weights of layers made in this run."""

    def __init__(self, plan: CompressionPlan) -> None:
        self._items = {item.name: item for item in plan.assignments}
        self._left = sum(math.prod(item.shape) for item in plan.assignments)
        self._total = sum(item.quantizer.estimate_nbytes(item.shape) for item in plan.assignments)
        self._made = self._stored = self._done = 0
        self._start = time.monotonic()

    def progress(self, result: LayerResult) -> Progress:
        """After one more layer."""
        weights = math.prod(self._items[result.record.name].shape)
        self._left -= weights
        self._made += weights if result.fresh else 0
        self._stored += result.record.nbytes
        self._done += 1
        rate = self._made / max(1e-6, time.monotonic() - self._start)
        words = f"{result.record.name}, {self._stored / 1e6:.1f} of {self._total / 1e6:.1f} MB"
        text = f"{words}, {rate / 1e6:.1f} million weights per second" if rate else words
        return Progress("compress", "", self._done, len(self._items), text, self._left / rate if rate else None)
