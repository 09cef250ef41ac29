"""Which statistics of its inputs a plan's layers are compressed with: by default those of the tier's own prompts.

They are kept in the data folder under a key of the base model's content and of every setting that shapes the numbers,
so that all calibrated methods share one gathering. No prompt of an evaluation is among the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdvq_core import presets
from sdvq_core.calibration import DEFAULT_ROWS, CalibrationSettings, Trajectory, collect
from sdvq_core.diffusion.sources import Source
from sdvq_core.errors import StoreError
from sdvq_core.jobs import Notice, Progress, Sampling
from sdvq_core.plan import CompressionPlan
from sdvq_core.records import BaseInfo
from sdvq_core.store import StatsFolder, StatsInfo

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel

_BATCH = {"nano": 16}  # prompts sampled together, by tier; one elsewhere
_ROWS = {"nano": 2048}  # of a layer's input per call of the UNet
_PROMPTS = 32
_FIRST_SEED = 500_000_000  # far from seeds that people choose


def calibrated_layers(plan: CompressionPlan) -> list[str]:
    """The layers whose quantizer asks for statistics."""
    return [item.name for item in plan.assignments if item.quantizer.calibrated]


def settings_for(source: Source) -> CalibrationSettings:
    """The tier's calibration prompts, at the steps and guidance that suit the model."""
    prompts = tuple(presets.calibration_prompts(source.tier)[:_PROMPTS])
    batch, rows = _BATCH.get(source.tier, 1), _ROWS.get(source.tier, DEFAULT_ROWS)
    return CalibrationSettings(prompts, source.steps, source.guidance, _FIRST_SEED, batch, rows)


def statistics_key(source: Source, fingerprint: str) -> str:
    """Name of the statistics' folder; part of the key of every artifact made with them."""
    return StatsInfo(BaseInfo(source.name, fingerprint), settings_for(source).to_json()).key


def missing_layers(source: Source, fingerprint: str, plan: CompressionPlan, data: Path) -> list[str]:
    """The plan's calibrated layers whose statistics are not kept yet."""
    wanted = calibrated_layers(plan)
    base = BaseInfo(source.name, fingerprint)
    try:
        kept = StatsFolder.open(data / "statistics" / statistics_key(source, fingerprint), base) if wanted else ()
    except StoreError:
        return wanted
    return [name for name in wanted if name not in kept]


def gather(base: BaseModel, plan: CompressionPlan, data: Path) -> Iterator[Progress | Notice | StatsFolder]:
    """Progress, then the statistics of the plan's calibrated layers; nothing but them where they are kept already."""
    settings = settings_for(base.source)
    folder = data / "statistics" / statistics_key(base.source, base.fingerprint)
    trajectories = [_trajectory(base, batch) for batch in settings.batches()]
    info = BaseInfo(base.source.name, base.fingerprint)
    yield from collect(base.unet, calibrated_layers(plan), trajectories, settings, folder, info)


def _trajectory(base: BaseModel, batch: tuple[Sampling, ...]) -> Trajectory:
    from sdvq_core.diffusion.sampling import sample_batch

    return Trajectory(lambda: sample_batch(base, base.unet, batch), batch[0].steps)
