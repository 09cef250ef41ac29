"""What an evaluation draws with: the model, the place where samples are kept, and one subject per arm."""

from __future__ import annotations

import logging

from torch import nn

from sdvq_core.arms import Arm
from sdvq_core.diffusion.base_model import pick_device
from sdvq_core.diffusion.fingerprint import surroundings
from sdvq_core.diffusion.sources import find_source
from sdvq_core.engine import Engine
from sdvq_core.evaluation.meter import Meter
from sdvq_core.evaluation.samples import Bench, Subject
from sdvq_core.jobs import Notice
from sdvq_core.production import versions
from sdvq_core.store.samples import SampleStore
from sdvq_core.summaries import EvaluateJob

log = logging.getLogger(__name__)


def bench_for(engine: Engine, job: EvaluateJob) -> Bench:
    """What the evaluation `job` works with, on this machine."""
    source, device = find_source(job.model), pick_device(engine.device)
    around = (surroundings(source), device.type, *engine.setup.changes(device))
    context = (engine.shelf.fingerprint(job.model), *around, *versions().values())
    store = SampleStore(engine.data / "evaluations")
    bench = Bench(engine, job, source, context, store, Meter(0))
    sets, looks = len(job.arms) + 2, len(job.arms)  # the floors are two sets, one of them looked at step by step
    bench.meter.total = sets * len(job.samplings) + looks * bench.traced
    return bench


def subject_of(bench: Bench, arm: Arm) -> Subject:
    """`arm`, whose UNet is loaded when it is needed."""
    engine, model = bench.engine, bench.job.model
    return Subject(arm.word, engine.content(model, arm), lambda: _unet(engine, model, arm))


def _unet(engine: Engine, model: str, arm: Arm) -> nn.Module:
    for event in engine.ready(model, arm):
        if isinstance(event, Notice):
            log.warning(event.text)
    return engine.unet(model, arm)
