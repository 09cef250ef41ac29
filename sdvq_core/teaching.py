"""What a distillation learns on: the calibration prompts, sampled by the original or by the compressed model.

Seeds are neither calibration's nor ones that people choose, and no prompt of an evaluation is among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sdvq_core.calibration import Trajectory
from sdvq_core.distillation import DistillationSettings, Lessons, decoded_copy, record_lessons
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.statistics import DEFAULT, Calibration, prompts_for

if TYPE_CHECKING:
    from torch import nn

    from sdvq_core.diffusion.base_model import BaseModel

_FIRST_SEED = 600_000_000
_STUDENTS_SEED = 700_000_000  # the compressed model starts from other noise


def teach(
    base: BaseModel,
    settings: DistillationSettings,
    weights: Mapping[str, QuantizedTensor],
    calibration: Calibration = DEFAULT,
) -> Iterator[Progress | Lessons]:
    """Progress, then the lessons that `settings` ask for."""
    found: Lessons | None = None
    for event in lessons(base, calibration):
        if isinstance(event, Progress):
            yield event
        else:
            found = event
    assert found is not None
    if settings.follow == "both":
        for event in lessons(base, calibration, student=decoded_copy(base.unet, weights)):
            yield event if isinstance(event, Progress) else found.join(event)
    else:
        yield found


def lessons(
    base: BaseModel,
    calibration: Calibration = DEFAULT,
    pairs: int | None = None,
    student: nn.Module | None = None,
) -> Iterator[Progress | Lessons]:
    """Progress, then what the original answers on its own trajectories, or on those of `student`.

    pairs: of image and step, as many batches of prompts as give so many different ones; all by default.
    """
    batches = None if pairs is None else -(-pairs // (base.source.steps * base.source.batch))
    first = _FIRST_SEED if student is None else _STUDENTS_SEED
    runs = _trajectories(base, prompts_for(base.source, calibration), student or base.unet, first)[:batches]
    yield from record_lessons(base.unet, runs, 2 if base.source.guidance > 1 else 1, student)


def _trajectories(base: BaseModel, prompts: Sequence[str], unet: nn.Module, first_seed: int) -> list[Trajectory]:
    from sdvq_core.diffusion.sampling import sample_batch

    source, size = base.source, base.source.batch
    every = [
        Sampling(prompt, first_seed + index, source.steps, source.guidance) for index, prompt in enumerate(prompts)
    ]
    batches = [tuple(every[at : at + size]) for at in range(0, len(every), size)]
    return [Trajectory(partial(sample_batch, base, unet, batch), source.steps) for batch in batches]
