"""An evaluation from job to result: compress, draw, score; whatever an earlier run left on the disk is taken up."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sdvq_core.arms import Arm, parse_arm
from sdvq_core.diffusion.base_model import pick_device
from sdvq_core.diffusion.precision import pick_dtype
from sdvq_core.diffusion.sources import find_source
from sdvq_core.engine import Engine
from sdvq_core.evaluation.ahead import drawn_ahead
from sdvq_core.evaluation.floors import OTHER_SEED, SEED_LABEL, other_precision
from sdvq_core.evaluation.samples import Bench, Subject, draw
from sdvq_core.evaluation.scoring import Judge
from sdvq_core.evaluation.subjects import bench_for, subject_of
from sdvq_core.evaluation.timesteps import step_errors
from sdvq_core.jobs import MAX_SEED, Notice, Progress, Sampling
from sdvq_core.judges import find_judge
from sdvq_core.records import BaseInfo
from sdvq_core.summaries import ArmSummary, EvaluateJob, EvaluateResult

log = logging.getLogger(__name__)


def evaluate(engine: Engine, job: EvaluateJob) -> Iterator[Progress | Notice | EvaluateResult]:
    """Draw every prompt and seed with every arm, and compare with the first arm; the last event is the result."""
    arms = [parse_arm(word) for word in job.arms]
    if engine.setup.compresses_text:
        yield from engine.prepare(job.model)  # with progress; else it is loaded when it is first needed
    yield from _compressed(engine, job, arms)
    bench = bench_for(engine, job)
    if engine.means.engine == "ray":
        yield from drawn_ahead(bench, {word: job.samplings for word in job.arms})
        yield from drawn_ahead(bench, {job.arms[0]: _other_seeds(job)})
    first = subject_of(bench, arms[0])
    reference = yield from draw(bench, first, job.samplings, ("steps", "outputs"))
    other = yield from draw(bench, replace(first, word=SEED_LABEL), _other_seeds(job), ())
    judge = Judge.of(job, find_judge(bench.source.tier), reference, other)
    ledger = engine.ledger(job.model, arms[0])
    noise = judge.summary(arms[0].word, SEED_LABEL, ledger, other)
    precision = yield from _precision_floor(bench, arms[0], judge)
    summaries = [judge.summary(arms[0].word, arms[0].label, ledger, reference)]
    for arm in arms[1:]:
        subject = subject_of(bench, arm)
        summaries.append((yield from _measured(bench, subject, arm, judge, first)))
    base = BaseInfo(find_source(job.model).name, engine.shelf.fingerprint(job.model))
    today = datetime.date.today().isoformat()
    yield EvaluateResult(job, tuple(summaries), noise, engine.device_name, precision, base, today)


def _compressed(engine: Engine, job: EvaluateJob, arms: Sequence[Arm]) -> Iterator[Progress | Notice]:
    for arm in arms:
        engine.shelf.check(job.model, arm)
    for arm in arms:
        for event in engine.compress(job.model, arm) if arm.compresses else ():
            if not isinstance(event, Path):
                yield event


def _other_seeds(job: EvaluateJob) -> list[Sampling]:
    return [replace(sampling, seed=(sampling.seed + OTHER_SEED) % (MAX_SEED + 1)) for sampling in job.samplings]


def _measured(
    bench: Bench, subject: Subject, arm: Arm, judge: Judge, reference: Subject
) -> Generator[Progress, None, ArmSummary]:
    """Progress; returns the summary of a subject that stands for `arm`."""
    found = yield from draw(bench, subject, bench.job.samplings)
    steps = yield from step_errors(bench, subject, reference, judge.reference, found)
    label = arm.label if subject.word == arm.word else subject.word
    return judge.summary(arm.word, label, bench.engine.ledger(bench.job.model, arm), found, steps)


def _precision_floor(bench: Bench, arm: Arm, judge: Judge) -> Generator[Progress, None, ArmSummary | None]:
    """Progress; returns None where there is no memory for a second copy."""
    dtype = pick_dtype(bench.engine.setup.dtype, pick_device(bench.engine.device))
    subject = other_precision(bench.engine, bench.job.model, arm, dtype)
    before = bench.meter.done
    try:
        return (yield from _measured(bench, subject, arm, judge, subject_of(bench, arm)))
    except torch.OutOfMemoryError as error:
        log.warning("the floor of the other precision is left out: %s", str(error).splitlines()[0])
        bench.meter.drop(before + len(bench.job.samplings) + bench.traced - bench.meter.done)
        return None
