"""From what a user types to a model: `nano`, a preset, a pipeline folder, a single file or a Hub id.

Light on purpose (no torch, no diffusers): names are checked, and wrong ones refused, before anything heavy starts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from sdvq_core.diffusion.folders import (
    PICKLES,
    check_pipeline,
    nano_sized,
    read_header,
    read_json,
    refusal,
    resolution,
)
from sdvq_core.errors import ModelError
from sdvq_core.jobs import ModelInfo

ACCEPTED = "nano, sdxl, sdxl-turbo, a diffusers pipeline folder, a .safetensors checkpoint or a Hub id owner/name"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LDM_UNET = "model.diffusion_model."
LDM_TEXT = "conditioner.embedders.1."


@dataclass(frozen=True)
class Source:
    """Where a base model is, and how it is sampled when nobody says otherwise.

    name: what the user typed. location: a path, or the Hub id. resolution: pixels per side.
    """

    name: str
    kind: Literal["folder", "file", "hub"]
    location: str
    label: str
    tier: str
    steps: int
    guidance: float
    resolution: int

    @property
    def batch(self) -> int:
        """Images to sample together: many of a small model, one elsewhere."""
        return _BATCH.get(self.tier, 1)


_BATCH = {"nano": 16}  # by tier

SDXL = Source("sdxl", "hub", "stabilityai/stable-diffusion-xl-base-1.0", "SDXL base 1.0", "sdxl", 30, 5.0, 1024)
TURBO = Source("sdxl-turbo", "hub", "stabilityai/sdxl-turbo", "SDXL-Turbo", "sdxl", 2, 0.0, 512)
PRESETS = {source.name: source for source in (SDXL, TURBO)}


def find_source(name: str) -> Source:
    """The model that `name` names."""
    if name == "nano":
        return _nano()
    if name in PRESETS:
        return PRESETS[name]
    path, is_folder, is_file = _look_up(name)
    if is_folder:
        return _folder(name, path)
    if is_file or path.suffix in (*PICKLES, ".safetensors"):
        return _file(name, path)
    if HUB_ID.fullmatch(name):
        return Source(name, "hub", name, name, "sdxl", SDXL.steps, SDXL.guidance, SDXL.resolution)
    if os.sep in name or name.startswith(("~", ".")):
        raise ModelError(f"{name} does not exist; a model is {ACCEPTED}")
    raise ModelError(f"{name!r} names no model; a model is {ACCEPTED}")


def known_models() -> list[ModelInfo]:
    """What can be named without a path, and whether it would load without network."""
    return [_nano_info(), *(_preset_info(source) for source in PRESETS.values())]


def cached_folder(repo: str) -> Path | None:
    """The pipeline folder of a Hub model in the local Hugging Face cache, where it is complete; else None."""
    try:
        index = try_to_load_from_cache(repo, "model_index.json")
        if not isinstance(index, str):
            return None
        check_pipeline(Path(index).parent)
    except (ModelError, HFValidationError):
        return None
    return Path(index).parent


def nano_folder() -> Path:
    """Where the bundled model is: $SDVQ_NANO, or assets/nano of this checkout."""
    chosen = os.environ.get("SDVQ_NANO")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "assets" / "nano"


def _look_up(name: str) -> tuple[Path, bool, bool]:
    """(path, is a folder, is a file); the empty name is neither."""
    try:
        path = Path(name).expanduser()
        return path, bool(name) and path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{name[:100]!r} cannot be looked up ({error}); a model is {ACCEPTED}") from None


def _nano() -> Source:
    folder = nano_folder()
    if not folder.is_dir():
        raise ModelError(f"the bundled model is not at {folder}; set SDVQ_NANO to its folder, or run from a checkout")
    check_pipeline(folder)
    pixels = resolution(folder, read_json(folder / "unet" / "config.json"))
    return Source("nano", "folder", str(folder), "nano (bundled)", "nano", 20, 4.0, pixels)


def _folder(name: str, folder: Path) -> Source:
    check_pipeline(folder)
    config = read_json(folder / "unet" / "config.json")
    tier = "nano" if nano_sized(config) else "sdxl"
    steps, guidance = _habits(folder, tier)
    label = folder.resolve().name
    return Source(name, "folder", str(folder.resolve()), label, tier, steps, guidance, resolution(folder, config))


def _habits(folder: Path, tier: str) -> tuple[int, float]:
    """(steps, guidance) that suit a pipeline folder; few-step models come with Turbo's scheduler."""
    scheduler: dict[str, Any] = read_json(folder / "scheduler" / "scheduler_config.json")
    if scheduler.get("_class_name") == "EulerAncestralDiscreteScheduler":
        return TURBO.steps, TURBO.guidance
    return (20, 4.0) if tier == "nano" else (SDXL.steps, SDXL.guidance)


def _file(name: str, path: Path) -> Source:
    if path.suffix in PICKLES:
        raise ModelError(refusal(path))
    if not path.is_file():
        raise ModelError(f"{name} does not exist; a model is {ACCEPTED}")
    if path.suffix != ".safetensors":
        raise ModelError(f"{name} is not a .safetensors file; a model is {ACCEPTED}")
    names = read_header(path)
    if not any(key.startswith(LDM_UNET) for key in names) or not any(key.startswith(LDM_TEXT) for key in names):
        raise ModelError(
            f"{name} is not a full SDXL checkpoint (it lacks {LDM_UNET}* or {LDM_TEXT}*); "
            "a UNet, VAE, LoRA or SD 1.5 file alone makes no image"
        )
    full = str(path.resolve())
    return Source(name, "file", full, path.stem, "sdxl", SDXL.steps, SDXL.guidance, SDXL.resolution)


def _nano_info() -> ModelInfo:
    try:
        source, note = _nano(), "trained from scratch on Fluent emoji; runs on a CPU"
    except ModelError as error:
        return ModelInfo("nano", "nano (bundled)", "nano", False, str(error), 20, 4.0, 64)
    return ModelInfo("nano", source.label, "nano", True, note, source.steps, source.guidance, source.resolution)


def at_hand(source: Source) -> bool:
    """Whether the model would load without network."""
    return source.kind != "hub" or cached_folder(source.location) is not None


def _preset_info(source: Source) -> ModelInfo:
    here = at_hand(source)
    note = "in the Hugging Face cache" if here else f"needs a download of about 7 GB from {source.location}"
    return ModelInfo(
        source.name, source.label, source.tier, here, note, source.steps, source.guidance, source.resolution
    )
