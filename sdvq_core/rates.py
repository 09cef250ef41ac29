"""How fast this machine works: units per second of each stage, noted when it is done, so that the next can be foretold.

Compression is counted in weights, by quantizer; statistics in gatherings, widths and updates in their number, sampling
in steps, all by the habits of the model. Before a quantizer has run here, what was measured on such a device counts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from sdvq_core.diffusion.sources import Source
from sdvq_core.errors import StoreError
from sdvq_core.jobs import WAIT, Notice, Progress
from sdvq_core.plan import CompressionPlan
from sdvq_core.presets import FOLDER, read_preset
from sdvq_core.store.images import write_bytes

_FILE = "rates.json"
_LEAST_SECONDS = 0.2  # shorter work says nothing of longer
_NEW = 0.5  # share of the newest measurement

T = TypeVar("T")


class Rates:
    """What was noted on `device`, a name, below `data`."""

    def __init__(self, data: Path, device: str) -> None:
        self.path, self.device = data / _FILE, device

    def note(self, stage: str, what: str, units: float, seconds: float) -> None:
        """Keep that `units` took `seconds`; a folder that cannot be written forgets it."""
        if units <= 0 or seconds < _LEAST_SECONDS:
            return
        known, key, rate = self._read(), self._key(stage, what), units / seconds
        earlier = known.get(key)
        known[key] = rate if earlier is None else _NEW * rate + (1 - _NEW) * earlier
        with suppress(StoreError):
            write_bytes(self.path, json.dumps(known, indent=1, sort_keys=True).encode())

    def seconds(self, stage: str, what: str, units: float) -> float | None:
        """How long `units` will take; None where nothing of the kind was measured."""
        rate = self._read().get(self._key(stage, what))
        return None if rate is None else units / rate

    def note_compression(self, plan: CompressionPlan, seconds: float) -> None:
        """Keep how long a plan took, for plans of the same quantizers and for those of their kind."""
        for what in _kinds(plan):
            self.note("compress", what, weights_of(plan), seconds)

    def note_run(self, watch: Stopwatch, source: Source, plan: CompressionPlan, updates: int) -> None:
        """Keep what making an artifact took, stage by stage, if all of it was done at once."""
        if not watch.whole:
            return
        units = {"calibrate": 1, "allocate": 1, "distil": updates}
        for stage, seconds in watch.seconds.items():
            if stage in units:
                self.note(stage, habits(source), units[stage], seconds)
        self.note_compression(plan, watch.seconds.get("compress", 0.0))

    def compression(self, plan: CompressionPlan) -> float | None:
        """Seconds that `plan` will take: as its very quantizers did here, else their kind, else on such a device."""
        for what in _kinds(plan):
            found = self.seconds("compress", what, weights_of(plan))
            if found is not None:
                return found
        return self._elsewhere(plan)

    def _elsewhere(self, plan: CompressionPlan) -> float | None:
        names = {item.quantizer.name for item in plan.assignments}
        for pattern, rates in read_preset(FOLDER / "rates.yaml").items():
            if fnmatchcase(self.device, pattern) and names <= set(rates):
                return weights_of(plan) / min(float(rates[name]) for name in names) if names else None
        return None

    def _key(self, stage: str, what: str) -> str:
        return f"{self.device} | {stage} | {what}"

    def _read(self) -> dict[str, float]:
        try:
            known = json.loads(self.path.read_text("utf-8"))
            found = {str(key): float(rate) for key, rate in known.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
        return {key: rate for key, rate in found.items() if math.isfinite(rate) and rate > 0}


class Stopwatch:
    """Wall-clock time of a run of events, by the stage of the event that it ended in."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.whole = True  # whether all was done in this run

    def watch(self, events: Iterable[T]) -> Iterator[T]:
        """The same events."""
        start = time.monotonic()
        for event in events:
            if isinstance(event, Progress):
                self.seconds[event.stage] = self.seconds.get(event.stage, 0.0) + time.monotonic() - start
            if _is_shared(event):
                self.whole = False
            yield event
            start = time.monotonic()


def _is_shared(event: object) -> bool:
    """Whether another run has a part in the work."""
    if isinstance(event, Progress):
        return event.stage == WAIT
    return isinstance(event, Notice) and "earlier run" in event.text


def weights_of(plan: CompressionPlan) -> int:
    """Weights that a plan compresses."""
    return sum(math.prod(item.shape) for item in plan.assignments)


def drawing(source: Source, guidance: float) -> str:
    """What the time of a sampling step depends on, besides the device."""
    return f"{source.tier} {source.resolution} px {'guided' if guidance > 1 else 'unguided'}"


def habits(source: Source) -> str:
    """What the time of a model's statistics and lessons depends on, besides the device."""
    return f"{drawing(source, source.guidance)} {source.steps} steps"


def _kinds(plan: CompressionPlan) -> Sequence[str]:
    """The quantizers of a plan as one word, and their names as another, more general one."""
    exact = sorted({str(item.quantizer) for item in plan.assignments})
    names = sorted({item.quantizer.name for item in plan.assignments})
    return (" + ".join(exact), f"any {' + '.join(names)}")
