"""From what a user types to a model: `nano`, a preset, a pipeline folder, a single file or a Hub id.

Light on purpose (no torch, no diffusers): names are checked, and wrong ones refused, before anything heavy starts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from sdvq_core.diffusion.folders import (
    PICKLES,
    check_pipeline,
    check_unet_folder,
    is_unet_folder,
    nano_sized,
    read_head,
    read_json,
    refusal,
    resolution,
)
from sdvq_core.diffusion.habits import HABITS, Changes, Habits, habits_named, habits_of, split_habits
from sdvq_core.diffusion.recognition import LDM_UNET, TEXT_1, TEXT_2, VAE, check_dtypes, unet_shape, why_no_image
from sdvq_core.diffusion.sdxl_config import REFINER_WIDTH, SDXL_WIDTH
from sdvq_core.errors import ModelError

ACCEPTED = (
    "nano, sdxl, sdxl-turbo, a diffusers pipeline folder, a .safetensors checkpoint or a Hub id owner/name[@revision]"
)
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
ASSETS = Path(__file__).resolve().parents[2] / "assets"


@dataclass(frozen=True)
class Source:
    """Where a base model is, and how it is sampled when nobody says otherwise.

    name: what the user typed. kind "unet": the UNet folder of a pipeline alone. location: a path, or the Hub id.
    resolution: pixels per side. revision: branch, tag or commit of a Hub model. skeleton: pipeline folder with what a
    single file does not carry; scheduler: what differs from its scheduler's settings. no_image: why none can be drawn
    with this model, though its UNet can be compressed; empty where one can.
    """

    name: str
    kind: Literal["folder", "file", "hub", "unet"]
    location: str
    label: str
    tier: str
    steps: int
    guidance: float
    resolution: int
    revision: str | None = None
    skeleton: str = ""
    scheduler: Changes = ()
    no_image: str = ""

    @property
    def batch(self) -> int:
        """Images to sample together: many of a small model, one elsewhere."""
        return _BATCH.get(self.tier, 1)


_BATCH = {"nano": 16}  # by tier

_BASE, _FAST = HABITS["base"], HABITS["turbo"]
SDXL = Source(
    "sdxl", "hub", "stabilityai/stable-diffusion-xl-base-1.0", "SDXL base 1.0", "sdxl",
    _BASE.steps, _BASE.guidance, _BASE.resolution,
)  # fmt: skip
TURBO = Source(
    "sdxl-turbo", "hub", "stabilityai/sdxl-turbo", "SDXL-Turbo", "sdxl", _FAST.steps, _FAST.guidance, _FAST.resolution
)
PRESETS = {source.name: source for source in (SDXL, TURBO)}


def find_source(name: str) -> Source:
    """The model that `name` names."""
    if name == "nano":
        return _nano()
    if name in PRESETS:
        return PRESETS[name]
    path, is_folder, is_file = _look_up(name)
    if is_folder:
        return _unet_folder(name, path) if is_unet_folder(path) else _folder(name, path)
    if is_file:
        return _file(name, path, "")
    file, habits = split_habits(name)
    if habits or path.suffix in (*PICKLES, ".safetensors"):
        return _file(name, _look_up(file)[0], habits)
    hub = HUB_ID.fullmatch(name)
    if hub:
        return _hub(name, hub[1], hub[2])
    if os.sep in name or name.startswith(("~", ".")):
        raise ModelError(f"{name} does not exist; a model is {ACCEPTED}")
    raise ModelError(f"{name!r} names no model; a model is {ACCEPTED}")


def cached_folder(repo: str, revision: str | None = None) -> Path | None:
    """The pipeline folder of a Hub model in the local Hugging Face cache, where it is complete; else None."""
    try:
        index = try_to_load_from_cache(repo, "model_index.json", revision=revision)
        if not isinstance(index, str):
            return None
        check_pipeline(Path(index).parent)
    except (ModelError, HFValidationError):
        return None
    return Path(index).parent


def exact_name(source: Source) -> str:
    """What an artifact says it was made from: of a Hub model in the cache the id with its commit, else what was typed.

    It names the very same files when it is typed again.
    """
    folder = cached_folder(source.location, source.revision) if source.kind == "hub" else None
    return source.name if folder is None else f"{source.location}@{folder.name}"


def nano_folder() -> Path:
    """Where the bundled model is: $SDVQ_NANO, or assets/nano of this checkout."""
    chosen = os.environ.get("SDVQ_NANO")
    return Path(chosen) if chosen else ASSETS / "nano"


def sdxl_folder() -> Path:
    """SDXL's pipeline folder without weights, assets/sdxl of this checkout: what a single file does not carry."""
    return ASSETS / "sdxl"


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
    label, full = folder.resolve().name, str(folder.resolve())
    return _as_it_says(Source(name, "folder", full, label, "sdxl", SDXL.steps, SDXL.guidance, SDXL.resolution), folder)


def _hub(name: str, repo: str, revision: str | None) -> Source:
    """A Hub model: what its name tells until its files are in the cache, then what a folder with them is."""
    habits = habits_named(repo.rpartition("/")[2])
    source = Source(name, "hub", repo, name, "sdxl", habits.steps, habits.guidance, habits.resolution, revision)
    folder = cached_folder(repo, revision)
    return source if folder is None else _as_it_says(source, folder)


def _as_it_says(source: Source, folder: Path) -> Source:
    """`source`, a folder or a Hub model, with what its pipeline folder says about it."""
    reason, config = check_pipeline(folder), read_json(folder / "unet" / "config.json")
    tier = "nano" if nano_sized(config) else "sdxl"
    if reason:
        return replace(source, tier=tier, no_image=reason)
    steps, guidance = _habits(folder, tier, Path(source.location).name)
    return replace(source, tier=tier, steps=steps, guidance=guidance, resolution=resolution(folder, config))


def _unet_folder(name: str, folder: Path) -> Source:
    reason = (
        check_unet_folder(folder) or "it is a UNet without text encoders and VAE: pass the pipeline folder around it"
    )
    tier = "nano" if nano_sized(read_json(folder / "config.json")) else "sdxl"
    full = folder.resolve()
    return Source(name, "unet", str(full), full.name, tier, SDXL.steps, SDXL.guidance, SDXL.resolution, no_image=reason)


def _habits(folder: Path, tier: str, name: str) -> tuple[int, float]:
    """(steps, guidance) that suit a pipeline folder; few-step models come with Turbo's scheduler, or say so by name."""
    scheduler: dict[str, Any] = read_json(folder / "scheduler" / "scheduler_config.json")
    if all(scheduler.get(key) == value for key, value in HABITS["turbo"].scheduler):
        return TURBO.steps, TURBO.guidance
    if tier == "nano":
        return 20, 4.0
    named = habits_named(name)
    return named.steps, named.guidance


def _file(name: str, path: Path, chosen: str) -> Source:
    """A single file of SDXL's size or of the bundled model's; its UNet tells which."""
    if path.suffix in PICKLES:
        raise ModelError(refusal(path))
    if not path.is_file():
        raise ModelError(f"{name} does not exist; a model is {ACCEPTED}")
    if path.suffix != ".safetensors":
        raise ModelError(f"{name} is not a .safetensors file; a model is {ACCEPTED}")
    header, metadata = read_head(path)
    shape = unet_shape(header, name)
    check_dtypes(header, name, (LDM_UNET, TEXT_1, TEXT_2, VAE))
    skeleton, habits, tier = sdxl_folder(), habits_of(path.stem, metadata, header, chosen), "sdxl"
    if shape.width == _width(nano_folder()):
        nano = _nano()
        skeleton, habits, tier = nano_folder(), Habits(nano.steps, nano.guidance, nano.resolution), "nano"
    elif shape.width not in (SDXL_WIDTH, REFINER_WIDTH):
        raise ModelError(
            f"{name} has a UNet {shape.width} wide where SDXL's is {SDXL_WIDTH}; "
            "pass it as a diffusers pipeline folder, which says how it is built"
        )
    return Source(
        name, "file", str(path.resolve()), path.stem, tier, habits.steps, habits.guidance, habits.resolution,
        skeleton=str(skeleton), scheduler=habits.scheduler, no_image=why_no_image(header, shape),
    )  # fmt: skip


def _width(folder: Path) -> int:
    """Channels of the first convolution of the pipeline in `folder`; 0 where there is none."""
    config = folder / "unet" / "config.json"
    return int(read_json(config)["block_out_channels"][0]) if config.is_file() else 0


def at_hand(source: Source) -> bool:
    """Whether the model would load without network."""
    return source.kind != "hub" or cached_folder(source.location, source.revision) is not None
