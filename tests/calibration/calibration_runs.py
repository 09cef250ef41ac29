"""What the tests of calibration share: small models, trajectories over fixed inputs, and the end of an iterator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from core_cases import gaussian
from torch import Tensor, nn

from sdvq_core.calibration import CalibrationSettings, Here, Trajectory, collect
from sdvq_core.records import BaseInfo
from sdvq_core.store import StatsFolder

BASE = BaseInfo("tiny", "0123456789abcdef")


class Siblings(nn.Module):
    """q, k and v of one input, a projection of their sum, and text states for two more layers."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(24, 16) for _ in range(3))
        self.out = nn.Linear(16, 24)
        self.text_k, self.text_v = nn.Linear(12, 16), nn.Linear(12, 16)

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        mixed = self.to_q(x) + self.to_k(x) + self.to_v(x)
        return self.out(mixed + self.text_k(text).mean(-2, True) + self.text_v(text).mean(-2, True))


def settings(**changes: object) -> CalibrationSettings:
    return CalibrationSettings(**{"prompts": ("a frog",), "steps": 3, "rows_per_forward": 10**6, **changes})


def trajectory(model: nn.Module, inputs: Sequence[Sequence[Tensor]]) -> Trajectory:
    """Calls `model` once per entry."""

    def run():
        for arguments in inputs:
            with torch.no_grad():
                model(*arguments)
            yield

    return Trajectory(run, len(inputs))


def sibling_inputs(steps: int = 3, seed: int = 0) -> list[list[Tensor]]:
    return [
        [gaussian((2, 9, 24), seed + step, 1.0), torch.tensor(900 - step), gaussian((2, 5, 12), seed + 50, 1.0)]
        for step in range(steps)
    ]


def gather(
    model: nn.Module,
    names: Sequence[str],
    trajectories: Sequence[Trajectory],
    folder: Path,
    chosen: CalibrationSettings | None = None,
    budget: int | None = None,
) -> StatsFolder:
    return last(collect(Here(model, trajectories), names, chosen or settings(), folder, BASE, budget))


def last(events: Iterable[object]) -> StatsFolder:
    *_, found = events
    assert isinstance(found, StatsFolder)
    return found
