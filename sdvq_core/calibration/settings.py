"""What shapes the statistics besides the model: prompts, steps, guidance, seed, batches, rows and timestep weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sdvq_core.calibration.units import units
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Sampling

DEFAULT_ROWS = 512


@dataclass(frozen=True)
class CalibrationSettings:
    """Prompt i is sampled with seed + i, `batch` prompts at once; guidance above 1 adds the unconditional half.

    rows_per_forward: most input rows a layer contributes per call of the model; more are sampled evenly.
    step_weights: weight of each step's inputs, earliest (noisiest) first; () weighs all alike.
    context: what runs in the place of the original weights, such as the digest of a plan; "" for the original.
    """

    prompts: tuple[str, ...]
    steps: int = 20
    guidance: float = 4.0
    seed: int = 0
    batch: int = 4
    rows_per_forward: int = DEFAULT_ROWS
    step_weights: tuple[float, ...] = ()
    context: str = ""

    def __post_init__(self) -> None:
        if not any(prompt.strip() for prompt in self.prompts):
            raise ConfigError("calibration needs at least one prompt that is not empty, one per line")
        for name in ("batch", "rows_per_forward"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        weights = self.step_weights
        if weights and len(weights) != self.steps:
            raise ConfigError(f"step_weights must be {self.steps} numbers, one per step, or none; got {len(weights)}")
        if weights and not (all(math.isfinite(w) and w >= 0 for w in weights) and any(weights)):
            raise ConfigError(f"step_weights must be 0 or more, finite and not all 0, got {list(weights)}")
        self.batches()

    def batches(self) -> list[tuple[Sampling, ...]]:
        """What to sample, batch by batch."""
        all_of_them = [
            Sampling(prompt, self.seed + index, self.steps, self.guidance) for index, prompt in enumerate(self.prompts)
        ]
        return [tuple(all_of_them[at : at + self.batch]) for at in range(0, len(all_of_them), self.batch)]

    def weight(self, step: int) -> float:
        """Weight of the inputs at `step`, counted from 0."""
        if not self.step_weights:
            return 1.0
        if step >= len(self.step_weights):
            raise ConfigError(f"step_weights has {len(self.step_weights)} numbers, but the sampling has more steps")
        return self.step_weights[step]

    def after(self, context: str) -> CalibrationSettings:
        """The same settings on a model in which `context` runs in the place of the original weights."""
        return replace(self, context=context)

    def to_json(self) -> dict[str, Any]:
        """For the fingerprint of the statistics; of the prompts their digest and number, and how sums are ordered."""
        digest = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        parts = len(units(len(self.batches())))
        shaped = {"prompts": digest, "prompt_count": len(self.prompts), "step_weights": list(self.step_weights)}
        return {**asdict(self), **shaped, **({"units": parts} if parts > 1 else {})}


def early_weights(steps: int, ratio: float = 4.0) -> tuple[float, ...]:
    """Weights falling geometrically from `ratio` at the first step to 1 at the last; early steps compose an image."""
    if not (math.isfinite(ratio) and ratio > 0):
        raise ConfigError(f"ratio must be a number above 0, got {ratio}")
    return tuple(ratio ** (1 - step / max(1, steps - 1)) for step in range(steps))


def timestep_weights(word: str, steps: int) -> tuple[float, ...]:
    """What a user's word means: `uniform` (no weights), `early`, `late`, or one number per step, such as `3,2,1,1`."""
    if word == "uniform":
        return ()
    if word in ("early", "late"):
        return early_weights(steps)[:: 1 if word == "early" else -1]
    try:
        found = tuple(float(part) for part in word.split(","))
    except ValueError:
        found = ()
    if len(found) != steps or not all(math.isfinite(w) and w >= 0 for w in found) or not any(found):
        raise ConfigError(
            f"timesteps must be uniform, early, late or {steps} weights of 0 or more with commas between, got {word!r}"
        )
    return found


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 file that are not empty."""
    try:
        lines: Sequence[str] = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"prompts {path} cannot be read ({reason}); pass a UTF-8 text file with one prompt per line"
        ) from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ConfigError(f"prompts {path} has no prompt; write one per line")
    return prompts
