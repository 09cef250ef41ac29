"""Timing: the cases of a comparison take turns, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One case. seconds: median over the rounds; low, high: quartiles, where there are rounds. rate: in `unit`.

    ratio: the other case's median over this one's (above 1: this one is faster), `against` names the other; of bytes,
    the other case's over this one's. note: what else belongs to the number; why there is none, where it failed.
    """

    suite: str
    case: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    rate: float | None = None
    unit: str = ""
    ratio: float | None = None
    against: str = ""
    note: str = ""


@dataclass(frozen=True)
class BenchResult:
    """All rows of a run, and the machine that they were measured on."""

    machine: Mapping[str, str]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return {"machine": dict(self.machine), "rows": [asdict(row) for row in self.rows]}


@contextmanager
def threads_set_to(count: int) -> Iterator[None]:
    """torch, and our kernels with it, on `count` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_turns(cases: Mapping[str, Callable[[], object]], rounds: int, warm: bool = False) -> dict[str, list[float]]:
    """Seconds of every case, `rounds` each, after one turn that does not count unless they are `warm` already.

    What a case gives back goes after the clock has stopped.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + (not warm)):
        for name, case in cases.items():
            start = time.perf_counter()
            found = case()
            end = time.perf_counter()
            if turn or warm:
                seconds[name].append(end - start)
            del found
    return seconds


def rows(suite: str, seconds: Mapping[str, list[float]], against: str, work: float = 0, unit: str = "") -> list[Row]:
    """One row per case, compared with the case `against`; work: what each case gets done, in `unit` times a second."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    found = []
    for name, times in seconds.items():
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
        rate = work / medians[name] if work else None
        ratio, other = (None, "") if name == against else (medians[against] / medians[name], against)
        found.append(Row(suite, name, medians[name], quartiles[0], quartiles[2], rate, unit, ratio, other))
    return found
