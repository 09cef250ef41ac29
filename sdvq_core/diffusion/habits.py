"""How a checkpoint is sampled when nobody says otherwise; light.

Weights do not tell few-step models from others. The rule: what the user adds (FILE@turbo), else a file's own metadata
(modelspec.*) or a folder's scheduler (Turbo's), else its name; SDXL-Turbo's own names mean SDXL-Turbo, other names with
"turbo" or "lightning" a few-step fine-tune at SDXL's size, all others SDXL. A Hub model is a folder with its own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sdvq_core.errors import ModelError

Changes = tuple[tuple[str, str | bool], ...]

_TRAILING: Changes = (("timestep_spacing", "trailing"),)
_ANCESTRAL: Changes = (("_class_name", "EulerAncestralDiscreteScheduler"), *_TRAILING)
_V_PREDICTION: Changes = (("prediction_type", "v_prediction"),)
_ZERO_SNR: Changes = (("rescale_betas_zero_snr", True), *_TRAILING)


@dataclass(frozen=True)
class Habits:
    """Steps, guidance scale, pixels per side, and changes to SDXL's scheduler configuration."""

    steps: int
    guidance: float
    resolution: int
    scheduler: Changes = ()


HABITS = {
    "base": Habits(30, 5.0, 1024),
    "turbo": Habits(2, 0.0, 512, _ANCESTRAL),
    "lightning": Habits(4, 0.0, 1024, _TRAILING),
}


def split_habits(name: str) -> tuple[str, str]:
    """(file, habits) of FILE@habits; habits are empty where none are given."""
    file, at, word = name.rpartition("@")
    if not at or not file.endswith(".safetensors"):
        return name, ""
    if word not in HABITS:
        raise ModelError(f"{name} asks for the habits {word!r}; after the @ of a file stands {', '.join(HABITS)}")
    return file, word


def habits_of(stem: str, metadata: Mapping[str, str], names: Iterable[str], chosen: str = "") -> Habits:
    """The habits of a checkpoint file. stem: its name; names: of its tensors, `v_pred` and `ztsnr` are markers."""
    title = metadata.get("modelspec.title", "")
    habits = HABITS[chosen] if chosen else habits_named(title if _told(title) else stem)
    square = re.fullmatch(r"(\d+)x\1", metadata.get("modelspec.resolution", ""))
    if square and not chosen:
        habits = replace(habits, resolution=int(square[1]))
    names = set(names)
    if "v_pred" in names or metadata.get("modelspec.prediction_type") == "v":
        habits = replace(habits, scheduler=habits.scheduler + _V_PREDICTION)
    if "ztsnr" in names:
        habits = replace(habits, scheduler=habits.scheduler + _ZERO_SNR)
    return habits


def habits_named(name: str) -> Habits:
    """The habits that a title or name tells, of a file, a folder or a Hub model; SDXL's where it tells none."""
    return HABITS[_told(name) or "base"]


def _told(text: str) -> str:
    """The habits that a title or file name tells; empty where it tells none."""
    text = re.sub(r"[^a-z0-9]", "", text.lower())
    if text.startswith("sdxlturbo"):
        return "turbo"
    return "lightning" if "turbo" in text or "lightning" in text else ""
