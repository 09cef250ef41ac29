"""A loaded base model: diffusers' own SDXL pipeline, its device and dtype, and the fingerprint of its UNet.

float32 on CPU, float16 on CUDA, unless asked otherwise (`precision`). Which parts are on the device: see `placement`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sdvq_core.diffusion.fingerprint import fingerprint, translate, unet_files
from sdvq_core.diffusion.folders import WEIGHTED, check_unet_config, read_header, read_json, weight_files
from sdvq_core.diffusion.hub import fetched, hub_folder
from sdvq_core.diffusion.placement import PARTS, UNET, Placement
from sdvq_core.diffusion.precision import guard_vae, pick_dtype
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.diffusion.recognition import LDM_UNET, check_dtypes
from sdvq_core.diffusion.sdxl_config import sdxl_unet_config
from sdvq_core.diffusion.single_file import conv_in_shape, file_unet_config, load_single_file
from sdvq_core.diffusion.sources import PRESETS, Source
from sdvq_core.diffusion.weights import UnetWeights
from sdvq_core.errors import ConfigError, ModelError

with quiet():  # transformers says at import time that torchvision is missing; nothing here needs it
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

__all__ = [
    "BaseModel",
    "check_files",
    "fingerprint",
    "full_config",
    "load_base",
    "pick_device",
    "unet_config",
    "unet_skeleton",
    "unet_weights",
]

DEVICES = ("auto", "cpu", "cuda")
LATENT_FACTOR = 8
LOAD_ERRORS = (AttributeError, ImportError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class BaseModel:
    """The pipeline that everything is compared with; nobody changes its weights. Text encoders and VAE serve all arms.

    notices: what the user should be told about it and was not yet.
    """

    source: Source
    pipe: StableDiffusionXLPipeline
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    placement: Placement
    notices: list[str] = field(default_factory=list)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The original UNet, on the device."""
        self.placement.fetch(UNET)
        return self.pipe.unet

    def told(self) -> list[str]:
        """The notices, which are then forgotten."""
        found = list(self.notices)
        self.notices.clear()
        return found


def load_base(
    source: Source, device: str = "auto", data: Path | None = None, dtype: str = "auto", offload: bool = False
) -> BaseModel:
    """The pipeline of `source` in evaluation mode, without gradients; data: where fingerprints are remembered.

    dtype: auto, fp16, bf16 or fp32. offload: keep parts on the CPU while they are idle, where `device` is a GPU.
    """
    if not source.no_image:
        source = fetched(source)
    if source.no_image:
        raise ModelError(f"no image can be drawn with {source.name}, nor statistics gathered on it: {source.no_image}")
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    check_files(source)
    folder = pipeline_folder(source)
    try:
        with quiet():
            pipe = _from_folder(folder, kind) if folder else load_single_file(source, kind)
    except LOAD_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source.name} cannot be loaded ({reason}); fetch it again, or use nano") from error
    placement = Placement({part: getattr(pipe, part) for part in PARTS}, where, offload)
    with quiet():  # diffusers advises against half precision on a CPU; `_remarks` says it in a sentence
        _prepare(pipe, placement)
    return BaseModel(source, pipe, fingerprint(source, data), where, kind, placement, _remarks(where, kind, offload))


def pick_device(name: str) -> torch.device:
    """The device that auto, cpu or cuda means here."""
    if name not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device cuda was asked for, but no CUDA device is available; use cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def unet_config(source: Source) -> dict[str, Any]:
    """The UNet's configuration, without loading weights; SDXL's own for presets."""
    if source.kind == "file":
        config = file_unet_config(source, conv_in_shape(read_header(Path(source.location))))
        return {**config, "sample_size": source.resolution // LATENT_FACTOR} if source.tier == "sdxl" else config
    if source.name in PRESETS:
        return sdxl_unet_config(source.resolution // LATENT_FACTOR)
    config = read_json(_unet_folder(source) / "config.json")
    check_unet_config(config, source.name)
    return config


def full_config(source: Source) -> dict[str, Any]:
    """The UNet's configuration with every default spelled out."""
    return dict(unet_skeleton(source).config)


def unet_skeleton(source: Source) -> UNet2DConditionModel:
    """The UNet with shapes and no storage (meta device)."""
    return skeleton_of(unet_config(source))


def skeleton_of(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A UNet of `config` with shapes and no storage (meta device)."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(config))


def unet_weights(source: Source) -> UnetWeights:
    """The UNet's weights, read when they are asked for; ModelError where names differ from what its config wants."""
    check_files(source)
    return UnetWeights(unet_files(source))


def check_files(source: Source) -> None:
    """Raise ModelError unless all weight files are whole and in floating point, the UNet's with exactly its tensors."""
    source = fetched(source)
    folder = pipeline_folder(source)
    for path in () if folder is None or source.no_image else _beside_unet(folder):
        check_dtypes(read_header(path), str(path))
    found: dict[str, list[int]] = {}
    for path in unet_files(source):
        header = read_header(path)
        check_dtypes(header, str(path), (LDM_UNET,) if source.kind == "file" else ("",))
        found |= {name: header[stored]["shape"] for stored, name in translate(list(header)).items()}
    wanted = {name: list(tensor.shape) for name, tensor in unet_skeleton(source).state_dict().items()}
    odd = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if odd:
        has, wants = found.get(odd[0], "nothing"), wanted.get(odd[0], "nothing")
        raise ModelError(
            f"the UNet of {source.name} and its configuration differ in {len(odd)} tensors: "
            f"{odd[0]} is {has} in the file and {wants} in the configuration"
        )


def pipeline_folder(source: Source) -> Path | None:
    """The pipeline folder, fetched from the Hub where need be; None for a single file and for a UNet alone."""
    if source.kind in ("file", "unet"):
        return None
    return hub_folder(source) if source.kind == "hub" else Path(source.location)


def _unet_folder(source: Source) -> Path:
    folder = pipeline_folder(source)
    return Path(source.location) if folder is None else folder / "unet"


def _beside_unet(folder: Path) -> list[Path]:
    return [path for part in WEIGHTED if part != "unet" for path in weight_files(folder / part)[1]]


def _from_folder(folder: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(
        folder,
        dtype=dtype,
        variant=weight_files(folder / "unet")[0],
        use_safetensors=True,
        local_files_only=True,
        add_watermarker=False,
    )


def _prepare(pipe: StableDiffusionXLPipeline, placement: Placement) -> None:
    """Evaluation mode, no gradients, on the device unless parts are moved there when they are needed."""
    for part in WEIGHTED:
        getattr(pipe, part).eval().requires_grad_(False)
    guard_vae(pipe.vae)
    if not placement.active:
        pipe.to(placement.device)


def _remarks(device: torch.device, dtype: torch.dtype, offload: bool) -> list[str]:
    """What the user may not expect of a choice on this machine."""
    if device.type == "cuda":
        return []
    slow = ["a CPU computes in fp16 more slowly than in fp32 or bf16"] if dtype == torch.float16 else []
    idle = ["offloading changes nothing on a CPU: every part is in its memory anyway"] if offload else []
    return slow + idle
