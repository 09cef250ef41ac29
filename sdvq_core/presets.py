"""Reads presets/: prompts to try and prompts to calibrate on, one YAML file each with a list per tier of models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sdvq_core.errors import ConfigError

FOLDER = Path(__file__).resolve().parent.parent / "presets"


def prompts(tier: str, folder: Path = FOLDER) -> list[str]:
    """Suggested prompts for a tier of models, "nano" or "sdxl"."""
    return _prompts(folder / "prompts.yaml", tier)


def calibration_prompts(tier: str, folder: Path = FOLDER) -> list[str]:
    """Prompts to gather layer statistics on, for a tier; none of them is used to evaluate."""
    return _prompts(folder / "calibration.yaml", tier)


def _prompts(path: Path, tier: str) -> list[str]:
    found = read_preset(path).get(tier)
    if not isinstance(found, list) or not found or not all(isinstance(item, str) for item in found):
        raise ConfigError(f"{path.name} needs a list of prompts under {tier!r}")
    return found


def read_preset(path: Path) -> Mapping[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name} cannot be read as YAML ({error})") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path.name} must be a mapping of names to values")
    return data
