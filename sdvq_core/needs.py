"""What must still be done before an arm can draw, and for how long: said before the click, from what is on the disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sdvq_core import statistics, tuning
from sdvq_core.arms import Arm, parse_arm
from sdvq_core.diffusion.sources import at_hand, find_source
from sdvq_core.engine import Engine
from sdvq_core.jobs import FETCHED, CompareJob, Work
from sdvq_core.plan import CompressionPlan
from sdvq_core.rates import drawing, habits

_STAGE_SECONDS, _LOAD_SECONDS, _STEP_SECONDS = 60.0, 20.0, {"nano": 0.1}  # assumed where nothing was measured
_MARGIN = 1.3


def needs(engine: Engine, model: str, arm: Arm) -> tuple[Work, ...]:
    """The stages in their order; none for what is at hand. A model that needs a download is taken as new."""
    source = find_source(model)
    fetch = () if at_hand(source) else (Work("fetch", 1, source.location),)
    return (*fetch, *_made(engine, model, arm))


def _made(engine: Engine, model: str, arm: Arm) -> tuple[Work, ...]:
    if arm.peer is not None:
        return () if engine.report(model, arm) else (Work("quantize", 0, arm.peer.package),)
    source = find_source(model)
    here = at_hand(source)
    if not arm.compresses or (here and engine.shelf.cached(model, arm) is not None):
        return ()
    if engine.shelf.hub is not None and engine.shelf.offered(model, arm):
        return (Work("download", 1, engine.shelf.hub.repo),)
    plan = engine.shelf.plan(model, arm)
    base = engine.shelf.fingerprint(model) if here else ""
    missing, untried = statistics.missing_layers(source, base, plan, engine.data, engine.calibration), 0
    if arm.target is not None and engine.shelf.rules(model, arm) is None:
        untried = len(tuning.unmeasured(source, base, arm.target, engine.data, engine.calibration))
    stages = (
        Work("calibrate", len(missing)),
        Work("allocate", untried),
        Work("compress", len(plan.assignments)),
        Work("distil", arm.distil.updates if arm.distil else 0),
    )
    return tuple(_timed(engine, model, plan, stage) for stage in stages if stage.count)


def job_seconds(engine: Engine, jobs: Sequence[CompareJob]) -> float:
    """What comparisons of the same arms with one model will take, with a margin; what was never measured is assumed."""
    source, arms = find_source(jobs[0].model), jobs[0].arms
    work = [stage for word in arms for stage in needs(engine, source.name, parse_arm(word))]
    stages = [stage.seconds for stage in work if stage.stage not in FETCHED]
    seconds = 0.0 if engine.is_loaded(source.name) else _LOAD_SECONDS
    seconds += math.fsum(_STAGE_SECONDS if stage is None else stage for stage in stages)
    for job in jobs:
        steps = job.sampling.steps * len(arms)
        drawn = engine.rates.seconds("sample", drawing(source, job.sampling.guidance), steps)
        seconds += steps * _STEP_SECONDS.get(source.tier, 1.0) if drawn is None else drawn
    return _MARGIN * seconds


def _timed(engine: Engine, model: str, plan: CompressionPlan, stage: Work) -> Work:
    if stage.stage == "compress":
        return replace(stage, seconds=engine.rates.compression(plan))
    units = stage.count if stage.stage == "distil" else 1
    return replace(stage, seconds=engine.rates.seconds(stage.stage, habits(find_source(model)), units))
