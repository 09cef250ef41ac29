"""Samples drawn by a Ray cluster before an evaluation looks at them: batches of prompts side by side, on all its nodes.

Every node sees the data folder: what a worker draws is kept there as ever, and the evaluation finds it. A worker
computes on one core, so a sample may differ in its last bits from one that was drawn on several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdvq_core.arms import parse_arm
from sdvq_core.cluster import RayCrew, kept
from sdvq_core.diffusion.base_model import pick_device
from sdvq_core.engine import Engine
from sdvq_core.evaluation.samples import Bench, keep_batch
from sdvq_core.evaluation.subjects import bench_for, subject_of
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.setup import Setup
from sdvq_core.summaries import EvaluateJob


@dataclass(frozen=True)
class Place:
    """The evaluation that a batch belongs to, as a worker needs to know it."""

    job: EvaluateJob
    data: Path
    device: str
    mode: str
    setup: Setup


@dataclass(frozen=True)
class DrawTask:
    """One batch of one arm. traced: whether its steps are looked at."""

    place: Place
    word: str
    batch: tuple[Sampling, ...]
    traced: bool


def drawn_ahead(bench: Bench, wanted: Mapping[str, Sequence[Sampling]]) -> Iterator[Progress]:
    """Progress while a cluster draws the samplings of every arm; those that are kept already cost next to nothing."""
    engine = bench.engine
    place = Place(bench.job, engine.data.absolute(), engine.device, engine.mode, engine.setup)
    tasks = [
        DrawTask(place, word, batch, traced)
        for word, samplings in wanted.items()
        for batch, traced in bench.batches(samplings)
    ]
    crew = RayCrew(pick_device(engine.device), purpose="draw")
    for done, word in enumerate(crew.run(draw_batch, tasks), start=1):
        yield Progress("sample", word, done, len(tasks), "batches drawn by the cluster")


def draw_batch(task: DrawTask) -> str:
    """Draw and keep one batch, in a worker; the arm's word."""
    bench = _bench_of(task.place)
    first = task.word == task.place.job.arms[0]
    traces = ("steps", *(("outputs",) if first else ())) if task.traced else ()
    keep_batch(bench, subject_of(bench, parse_arm(task.word)), task.batch, {"latents", "images", *traces})
    return task.word


@kept
def _bench_of(place: Place) -> Bench:
    """One engine per worker, with the models that it has loaded."""
    engine = Engine(place.data, place.device, mode=place.mode, setup=place.setup)
    return bench_for(engine, place.job)
