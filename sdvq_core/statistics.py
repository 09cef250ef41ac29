"""Which statistics of its inputs a plan's layers are compressed with: by default those of the tier's own prompts.

They are kept in the data folder under a key of the base model's content and of every setting that shapes the numbers,
so that all calibrated methods share one gathering. No prompt of an evaluation is among the prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from sdvq_core import presets
from sdvq_core.calibration import (
    DEFAULT_ROWS,
    CalibrationSettings,
    Gatherer,
    Here,
    Trajectory,
    collect,
    timestep_weights,
)
from sdvq_core.diffusion.sources import Source
from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.grouping import row_length
from sdvq_core.jobs import Notice, Progress, Sampling
from sdvq_core.plan import CompressionPlan
from sdvq_core.records import BaseInfo
from sdvq_core.store import StatsFolder, StatsInfo

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel

_ROWS = {"nano": 2048}  # of a layer's input per call of the UNet
_PROMPTS = 32
_FIRST_SEED = 500_000_000  # far from seeds that people choose


@dataclass(frozen=True)
class Calibration:
    """What the user decides about calibration; all at their defaults, it is the tier's own.

    prompts: in the place of the tier's own. timesteps: `uniform`, `early`, `late` or one weight per step, with commas.
    statistics: a folder of them to use in the place of gathering, of another model as well, such as the one that this
    model was fine-tuned from. memory: bytes for second moments while gathering, None for half of what is free; it is
    no part of any key.
    """

    prompts: tuple[str, ...] = ()
    timesteps: str = "uniform"
    statistics: Path | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory < 1:
            raise ConfigError(f"memory for statistics must be 1 byte or more, got {self.memory}")
        if self.statistics is not None and (self.prompts or self.timesteps != "uniform"):
            raise ConfigError("statistics from a folder are used as they are: leave out prompts and timesteps")

    def describe(self, base: BaseInfo) -> str:
        """What differs from the default, in words for a manifest of `base`; "" if nothing does."""
        if self.statistics is not None:
            return f"statistics of {StatsFolder.open(self.statistics, base, allow_other_base=True).origin}"
        own = [f"{len(self.prompts)} calibration prompts of the user"] if self.prompts else []
        return ", ".join(own + ([] if self.timesteps == "uniform" else [f"timesteps {self.timesteps}"]))


DEFAULT = Calibration()


def calibrated_layers(plan: CompressionPlan) -> list[str]:
    """The layers whose quantizer asks for statistics."""
    return [item.name for item in plan.assignments if item.quantizer.calibrated]


def prompts_for(source: Source, calibration: Calibration = DEFAULT) -> tuple[str, ...]:
    """The user's calibration prompts, or the tier's own."""
    return calibration.prompts or tuple(presets.calibration_prompts(source.tier))


def settings_for(source: Source, calibration: Calibration = DEFAULT) -> CalibrationSettings:
    """The calibration prompts, at the steps and guidance that suit the model."""
    prompts = calibration.prompts or prompts_for(source)[:_PROMPTS]
    batch, rows = source.batch, _ROWS.get(source.tier, DEFAULT_ROWS)
    weights = timestep_weights(calibration.timesteps, source.steps)
    return CalibrationSettings(prompts, source.steps, source.guidance, _FIRST_SEED, batch, rows, weights)


def statistics_key(source: Source, fingerprint: str, calibration: Calibration = DEFAULT, context: str = "") -> str:
    """Name of the statistics' folder, or digest of the folder named; part of the key of every artifact of theirs.

    context: what runs in the place of the original weights, "" for the original.
    """
    if calibration.statistics is not None:
        found = StatsFolder.open(calibration.statistics, BaseInfo(source.name, fingerprint), allow_other_base=True)
        return hashlib.sha256(f"{found.info.key} {found.digest}".encode()).hexdigest()
    settings = settings_for(source, calibration).after(context)
    return StatsInfo(BaseInfo(source.name, fingerprint), settings.to_json()).key


def missing_layers(
    source: Source, fingerprint: str, plan: CompressionPlan, data: Path, calibration: Calibration = DEFAULT
) -> list[str]:
    """The plan's calibrated layers whose statistics are not kept yet."""
    wanted, base = calibrated_layers(plan), BaseInfo(source.name, fingerprint)
    if not wanted or calibration.statistics is not None:
        return []
    try:
        kept = StatsFolder.open(data / "statistics" / statistics_key(source, fingerprint, calibration), base)
    except StoreError:
        return wanted
    return [name for name in wanted if name not in kept]


def gather(
    base: BaseModel, plan: CompressionPlan, data: Path, calibration: Calibration = DEFAULT
) -> Iterator[Progress | Notice | StatsFolder]:
    """`gather_by` this process."""
    here = Here(base.unet, trajectories(base, base.unet, settings_for(base.source, calibration)))
    yield from gather_by(here, base.source, base.fingerprint, plan, data, calibration)


def gather_by(
    gatherer: Gatherer,
    source: Source,
    fingerprint: str,
    plan: CompressionPlan,
    data: Path,
    calibration: Calibration = DEFAULT,
) -> Iterator[Progress | Notice | StatsFolder]:
    """Progress, then the statistics of the plan's calibrated layers; nothing but them where they are kept already."""
    names, info = calibrated_layers(plan), BaseInfo(source.name, fingerprint)
    if calibration.statistics is not None:
        found = StatsFolder.open(calibration.statistics, info, allow_other_base=True)
        _check_fit(found, plan)
        yield Notice(f"statistics of {found.origin} are used, from {found.folder}")
        yield found.only(names)
        return
    settings = settings_for(source, calibration)
    folder = data / "statistics" / statistics_key(source, fingerprint, calibration)
    for event in collect(gatherer, names, settings, folder, info, calibration.memory):
        yield event.only(names) if isinstance(event, StatsFolder) else event


def trajectories(base: BaseModel, unet: nn.Module, settings: CalibrationSettings) -> Sequence[Trajectory]:
    """Sampling runs of `unet` in the pipeline of `base`, one per batch of prompts."""
    return [_trajectory(base, unet, batch) for batch in settings.batches()]


def _trajectory(base: BaseModel, unet: nn.Module, batch: tuple[Sampling, ...]) -> Trajectory:
    from sdvq_core.diffusion.sampling import call_count, sample_batch

    return Trajectory(lambda: sample_batch(base, unet, batch), call_count(base, batch[0].steps))


def _check_fit(found: StatsFolder, plan: CompressionPlan) -> None:
    """StoreError unless `found` has a matrix of the right size for every layer that asks for one."""
    again = "pass statistics of a model with the same layers, or leave the option out"
    for item in plan.assignments:
        if not item.quantizer.calibrated:
            continue
        if item.name not in found:
            raise StoreError(f"{found.folder} has no statistics of layer {item.name}; {again}")
        if found.columns(item.name) != row_length(item.shape):
            raise StoreError(
                f"{found.folder} has {found.columns(item.name)} columns for layer {item.name}, which has "
                f"{row_length(item.shape)}; {again}"
            )
