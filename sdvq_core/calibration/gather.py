"""Statistics of layers, pass by pass within a memory budget; who gathers them is the caller's choice."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from sdvq_core.calibration.here import Survey
from sdvq_core.calibration.passes import Gathering, split_passes
from sdvq_core.calibration.settings import CalibrationSettings
from sdvq_core.jobs import Notice, Progress
from sdvq_core.records import BaseInfo
from sdvq_core.store import BlockLayout, StatsFolder, StatsInfo, StatsWriter, in_turn


class Gatherer(Protocol):
    """Who runs the model: this process (`Here`), or workers of a crew (`Spread`)."""

    def survey(self, names: Sequence[str]) -> Survey:
        """What is to be gathered for the layers `names`."""
        ...

    def fill(self, items: Sequence[Gathering], settings: CalibrationSettings, writer: StatsWriter) -> Iterator[int]:
        """The number of calls of the model since the last item; at its end the matrices of `items` are written."""
        ...

    def close(self) -> None:
        """All that was asked for is written."""
        ...


def collect(
    gatherer: Gatherer,
    names: Sequence[str],
    settings: CalibrationSettings,
    folder: Path,
    base: BaseInfo,
    budget: int | None = None,
) -> Iterator[Progress | Notice | StatsFolder]:
    """Progress per call of the model, then the statistics of the layers `names`, kept in `folder`.

    budget: bytes for second moments on the model's device, by default half of what is free; what exceeds it takes
    further passes over the trajectories. Layers that `folder` already has, from the same model and settings, are not
    gathered again, and while another process gathers into it, this one waits. Raises LayerError for inputs that are
    NaN or infinite.
    """
    found: StatsFolder | None = None
    for event in in_turn(
        folder / ".lock", "these statistics", _collect(gatherer, names, settings, folder, base, budget)
    ):
        if isinstance(event, StatsFolder):
            found = event  # for later: who works with it holds up nobody
        else:
            yield event
    assert found is not None
    yield found


def _collect(
    gatherer: Gatherer,
    names: Sequence[str],
    settings: CalibrationSettings,
    folder: Path,
    base: BaseInfo,
    budget: int | None,
) -> Iterator[Progress | Notice | StatsFolder]:
    writer = StatsWriter(folder, StatsInfo(base, settings.to_json()))
    kept = [(entry.layers[0], entry.layout) for entry in writer.entries if set(entry.layers) & set(names)]
    yield from _notices(kept, f"an earlier run had less memory; remove {folder} to gather it anew")
    missing = [name for name in dict.fromkeys(names) if name not in writer.layers]
    if missing:
        found = gatherer.survey(missing)
        passes = split_passes(found.sources, found.budget if budget is None else budget, found.units)
        laid_out = [(item.source.layers[0], item.layout) for items in passes for item in items]
        yield from _notices(laid_out, "the whole matrix exceeds the memory budget")
        report = _Reporter(len(passes), found.calls)
        for number, items in enumerate(passes, start=1):
            for calls in gatherer.fill(items, settings, writer):
                yield report(calls, number, items)
            writer.commit()
    gatherer.close()
    yield writer.commit()


class _Reporter:
    """Progress with the time left."""

    def __init__(self, passes: int, calls: int) -> None:
        self.passes, self.total, self.done, self.start = passes, passes * calls, 0, time.monotonic()

    def __call__(self, calls: int, number: int, items: Sequence[Gathering]) -> Progress:
        self.done += calls
        left = (time.monotonic() - self.start) / self.done * max(0, self.total - self.done) if self.done else None
        layers = sum(len(item.source.layers) for item in items)
        text = f"statistics of {layers} layers, pass {number} of {self.passes}"
        return Progress("calibrate", "", self.done, max(self.total, self.done), text, left)


def _notices(items: Sequence[tuple[str, BlockLayout]], end: str) -> Iterator[Notice]:
    """One line per matrix, called by its first layer, that is not whole."""
    for name, layout in items:
        if not layout.is_whole:
            yield Notice(
                f"statistics of {name}: {layout.count} blocks of {layout.block} columns, not {layout.n}; {end}"
            )
