"""Statistics gathered by a crew: a unit of work is one task, then a matrix is one; bit for bit as `Here` gathers them.

The sums of a unit go from the worker that made them into a folder that all workers see, and from there to the workers
that add those of all units in their order, one matrix at a time: the caller holds none of them. A worker holds the sums
of one unit within the budget, as `Here` does, or one matrix. A unit that is in the folder is not summed again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from sdvq_core.calibration.here import Here, Survey
from sdvq_core.calibration.moments import SecondMoment
from sdvq_core.calibration.passes import Gathering
from sdvq_core.calibration.settings import CalibrationSettings
from sdvq_core.calibration.summing import Summing, finished
from sdvq_core.calibration.units import units
from sdvq_core.store import MomentEntry, StatsWriter, read_sum, write_moment
from sdvq_core.store.images import write_bytes

T = TypeVar("T")
R = TypeVar("R")
_STRETCH = 1.5  # of a budget, which is half of what is free


class Workers(Protocol):
    """Does work elsewhere, and gives the results in the order of the tasks.

    per_node: how many may share one machine's memory.
    """

    @property
    def per_node(self) -> int: ...

    def watch(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R | None]:
        """One result per task, and None now and then while none comes."""
        ...


@dataclass(frozen=True)
class SurveyTask:
    """What a worker looks for. place: gives it the model and its trajectories, and keeps them."""

    place: Callable[[], Here]
    names: tuple[str, ...]


@dataclass(frozen=True)
class UnitTask:
    """The trajectories that `unit` numbers, and the file for the sums of `items`."""

    place: Callable[[], Here]
    items: tuple[Gathering, ...]
    settings: CalibrationSettings
    unit: range
    path: Path

    @property
    def counter(self) -> Path:
        """A file that says how many calls of the model are made."""
        return self.path.with_suffix(".calls")


@dataclass(frozen=True)
class MatrixTask:
    """One matrix, by its number in the files of the units, and the folder of the statistics."""

    item: Gathering
    number: int
    paths: tuple[Path, ...]
    folder: Path


@dataclass(frozen=True)
class Spread:
    """Workers that each open the same `place`; `folder` is where sums wait, seen by all of them."""

    workers: Workers
    place: Callable[[], Here]
    folder: Path

    def survey(self, names: Sequence[str]) -> Survey:
        """See `Here`; the budget is a share of what is free where a worker looked."""
        (found,) = filter(None, self.workers.watch(survey, [SurveyTask(self.place, tuple(names))]))
        return replace(found, budget=self._budget(found.budget // self.workers.per_node))

    def fill(self, items: Sequence[Gathering], settings: CalibrationSettings, writer: StatsWriter) -> Iterator[int]:
        """See `Here`; calls are counted all together, whoever makes them."""
        folder, parts = self.folder.absolute() / _key(items), units(len(settings.batches()))
        paths = tuple(folder / f"{unit.start}.safetensors" for unit in parts)
        tasks = [
            UnitTask(self.place, tuple(items), settings, unit, path) for unit, path in zip(parts, paths, strict=True)
        ]
        said = 0
        for _ in self.workers.watch(sum_unit, tasks):
            made = sum(_number(task.counter) for task in tasks)
            yield max(0, made - said)  # a lost worker's count starts anew
            said = max(made, said)
        matrices = [MatrixTask(item, number, paths, writer.folder.absolute()) for number, item in enumerate(items)]
        for entry in self.workers.watch(add_units, reversed(matrices)):  # in the order in which `Here` writes
            writer.entries += [entry] if entry else []
            yield 0
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Drop the sums that are left, those of other passes than were made in the end."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _budget(self, now: int) -> int:
        """An earlier run's, whose sums suit the same passes alone, where memory allows it still; else what is here."""
        note = self.folder / "budget"
        earlier = _number(note)
        if now / _STRETCH <= earlier <= _STRETCH * now and any(self.folder.rglob("*.safetensors")):
            return earlier
        write_bytes(note, str(now).encode())
        return now


def survey(task: SurveyTask) -> Survey:
    """What is to be gathered, in a worker."""
    return task.place().survey(task.names)


def sum_unit(task: UnitTask) -> bool:
    """Sum a unit and leave the sums in its file, in a worker; whether that was yet to be done."""
    if task.path.exists():
        return False
    here = task.place()
    summing = Summing(task.items, task.settings, here.device)
    task.path.parent.mkdir(parents=True, exist_ok=True)
    for done, _ in enumerate(summing.run(here.model, here.trajectories, task.unit), start=1):
        with suppress(OSError):  # it is for the progress alone
            task.counter.write_text(str(done), "ascii")
    summing.save_unit(task.path)
    return True


def add_units(task: MatrixTask) -> MomentEntry:
    """Add one matrix of all units in their order and write it, in a worker."""
    moment = SecondMoment(task.item.layout, None, 0, torch.device("cpu"))
    for path in task.paths:
        moment.take(*read_sum(path, task.number))
    source = task.item.source
    return write_moment(task.folder, source.layers, finished(source, moment), moment.layout, moment.rows)


def _number(path: Path) -> int:
    """What a file says, 0 where it is not there yet, or being written."""
    with suppress(OSError, ValueError):
        return int(path.read_text("ascii"))
    return 0


def _key(items: Sequence[Gathering]) -> str:
    """Changes with what is summed, and how it is laid out."""
    content = [[item.source.layers, asdict(item.layout)] for item in items]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
