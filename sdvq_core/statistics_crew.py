"""Statistics gathered by a Ray cluster: each worker loads the pipeline once, the caller need not for that.

Every node sees the data folder and the model's files. The numbers are those of `statistics.gather` and of `sequential`,
bit for bit: a worker computes with as many threads as the caller would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdvq_core.calibration import CalibrationSettings, Here, Spread, Survey
from sdvq_core.calibration.passes import Gathering
from sdvq_core.cluster import RayCrew, kept
from sdvq_core.compress import LayerResult
from sdvq_core.diffusion.sources import Source
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan
from sdvq_core.sequential import put_weight
from sdvq_core.statistics import DEFAULT, Calibration, gather_by, settings_for, statistics_key, trajectories
from sdvq_core.store import StatsFolder, StatsWriter, Unfinished

if TYPE_CHECKING:
    from torch import nn

    from sdvq_core.diffusion.base_model import BaseModel

CALIBRATE = "calibrate"


@dataclass(frozen=True)
class Site:
    """Where the pipeline is and what it samples, as a worker needs to know it.

    done: layers whose compressed weights, from the folder of the artifact in the making, take the place of the
    original ones.
    """

    source: Source
    data: Path
    device: str
    settings: CalibrationSettings
    done: tuple[str, ...] = ()
    making: Unfinished | None = None

    def __call__(self) -> Here:
        """The UNet and its trajectories, in a worker."""
        return _opened(self)


@dataclass
class SpreadStudent:
    """A model that workers take compressed layers into, as far as these are finished."""

    spread: Spread
    site: Site

    def survey(self, names: Sequence[str]) -> Survey:
        return self._now.survey(names)

    def fill(self, items: Sequence[Gathering], settings: CalibrationSettings, writer: StatsWriter) -> Iterator[int]:
        return self._now.fill(items, settings, writer)

    def close(self) -> None:
        self.spread.close()

    def put(self, result: LayerResult) -> None:
        """The layer is on the disk already."""
        self.site = replace(self.site, done=(*self.site.done, result.record.name))

    @property
    def _now(self) -> Spread:
        return replace(self.spread, place=self.site)


@dataclass(frozen=True)
class StatisticsCrew:
    """Workers of the cluster for the models of `device`, and the data folder that all of them see."""

    device: torch.device
    data: Path

    def gather(
        self, source: Source, fingerprint: str, plan: CompressionPlan, calibration: Calibration = DEFAULT
    ) -> Iterator[Progress | Notice | StatsFolder]:
        """See `statistics.gather`."""
        site = self._site(source, settings_for(source, calibration))
        spread = self._spread(site, statistics_key(source, fingerprint, calibration))
        yield from gather_by(spread, source, fingerprint, plan, self.data, calibration)

    def student(self, source: Source, settings: CalibrationSettings, key: str, making: Unfinished) -> SpreadStudent:
        """For statistics called `key`, while `making` gets one compressed layer after the other."""
        site = replace(self._site(source, settings), making=Unfinished(making.folder.absolute()))
        return SpreadStudent(self._spread(site, key), site)

    def _site(self, source: Source, settings: CalibrationSettings) -> Site:
        return Site(source, self.data.absolute(), self.device.type, settings)

    def _spread(self, site: Site, key: str) -> Spread:
        crew = RayCrew(self.device, torch.get_num_threads(), CALIBRATE)
        return Spread(crew, site, self.data / "unfinished" / f"statistics-{key}")


@kept
def _opened(site: Site) -> Here:
    """What was opened last in this worker."""
    base = _loaded(site.source, site.data, site.device)
    if site.making is None:
        return Here(base.unet, trajectories(base, base.unet, site.settings))
    student = _copied(site.source, site.data, site.device, site.making)
    for name, tensor in site.making.layers(site.done).items():
        put_weight(student, name, tensor)
    return Here(student, trajectories(base, student, site.settings))


@kept
def _loaded(source: Source, data: Path, device: str) -> BaseModel:
    """The pipeline, once per worker."""
    from sdvq_core.diffusion.base_model import load_base

    return load_base(source, device, data)


@kept
def _copied(source: Source, data: Path, device: str, making: Unfinished) -> nn.Module:
    """A copy of the UNet for the compressed layers of one artifact."""
    student: nn.Module = deepcopy(_loaded(source, data, device).unet)
    return student
