"""What a recipe says about its distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdvq_core.errors import ConfigError


@dataclass(frozen=True)
class DistillationSettings:
    """Updates of `batch` pairs of image and step each; lr is in units of each array's own size.

    patience: looks without a new best after which training stops. follow: whose trajectories are learnt on, "teacher"
    or "both", the original's and the compressed model's.
    """

    updates: int = 400
    batch: int = 16
    lr: float = 1e-3
    warm_up: int = 20
    look_every: int = 50
    seed: int = 0
    patience: int = 6
    follow: str = "teacher"

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "look_every", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr must be a number above 0, got {self.lr}")
        if self.follow not in ("teacher", "both"):
            raise ConfigError(f"follow must be teacher or both, got {self.follow!r}")
