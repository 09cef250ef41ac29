"""Statistics gathered in this process, on a model that is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sdvq_core.calibration.passes import Gathering, default_budget
from sdvq_core.calibration.settings import CalibrationSettings
from sdvq_core.calibration.sharing import SharedInput, Trajectory, shared_inputs
from sdvq_core.calibration.summing import Summing
from sdvq_core.calibration.units import units
from sdvq_core.errors import ConfigError
from sdvq_core.store import StatsWriter


@dataclass(frozen=True)
class Survey:
    """What is to be gathered. calls: of the model, in all trajectories; budget: bytes for second moments by default."""

    sources: tuple[SharedInput, ...]
    calls: int
    units: int
    budget: int


@dataclass(frozen=True, eq=False)
class Here:
    """This process: it runs `trajectories`, which call `model`."""

    model: nn.Module
    trajectories: Sequence[Trajectory]

    def survey(self, names: Sequence[str]) -> Survey:
        """The distinct inputs of the layers `names`; runs one step."""
        if not self.trajectories:
            raise ConfigError("calibration needs at least one trajectory to sample")
        sources = shared_inputs(self.model, names, self.trajectories[0])
        calls = sum(trajectory.steps for trajectory in self.trajectories)
        return Survey(tuple(sources), calls, len(units(len(self.trajectories))), default_budget(self.device))

    def fill(self, items: Sequence[Gathering], settings: CalibrationSettings, writer: StatsWriter) -> Iterator[int]:
        """The number of calls made since the last item; at its end the matrices of `items` are written."""
        summing, parts = Summing(items, settings, self.device), units(len(self.trajectories))
        for unit in parts:
            for _ in summing.run(self.model, self.trajectories, unit):
                yield 1
            if len(parts) > 1:
                summing.fold()
        summing.save(writer)

    def close(self) -> None:
        """Nothing is left."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device
