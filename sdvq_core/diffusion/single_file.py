"""A pipeline from one file in the original SDXL layout and a skeleton folder with what it does not carry; no network.

Tensor by tensor from the mapped file, cast on the way: memory holds the pipeline and one tensor more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sdvq_core.diffusion.folders import WEIGHTED, read_json
from sdvq_core.diffusion.original_layout import where
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.diffusion.recognition import LDM_CONV_IN
from sdvq_core.diffusion.sdxl_config import REFINER_WIDTH, refiner_unet_config
from sdvq_core.diffusion.sources import Source
from sdvq_core.errors import ModelError

with quiet():
    import diffusers
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def load_single_file(source: Source, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """The pipeline of a single file in `dtype`; ModelError names what the file lacks."""
    skeleton = Path(source.skeleton)
    modules: dict[str, Any] = {}
    with safe_open(source.location, "pt") as file:
        for part in WEIGHTED:
            config = read_json(skeleton / part / "config.json")
            modules[part] = _filled(empty_component(part, config), part, config, file, dtype)
    tokenizers = {name: CLIPTokenizer.from_pretrained(skeleton / name) for name in ("tokenizer", "tokenizer_2")}
    index = read_json(skeleton / "model_index.json")
    return StableDiffusionXLPipeline(
        **modules,
        **tokenizers,
        scheduler=_scheduler(skeleton, dict(source.scheduler)),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        add_watermarker=False,
    )


def empty_component(part: str, config: Mapping[str, Any]) -> nn.Module:
    """A component with shapes and no weights; buffers that no file stores are real."""
    with init_empty_weights(include_buffers=False):
        if part in ("unet", "vae"):
            kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
            made: nn.Module = kind.from_config(dict(config))
            return made
        text = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
        encoder: nn.Module = text(CLIPTextConfig.from_dict(dict(config)))
        return encoder


def file_unet_config(source: Source, shape: tuple[int, int]) -> dict[str, Any]:
    """The UNet configuration of a single file whose first convolution has `shape` (out, in)."""
    width, channels = shape
    if width == REFINER_WIDTH:
        return {**refiner_unet_config(), "in_channels": channels}
    return {**read_json(Path(source.skeleton) / "unet" / "config.json"), "in_channels": channels}


def conv_in_shape(header: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """(channels out, channels in) of the first convolution of the UNet in a single file."""
    out, channels = header[LDM_CONV_IN]["shape"][:2]
    return int(out), int(channels)


def _filled(module: nn.Module, part: str, config: Mapping[str, Any], file: Any, dtype: torch.dtype) -> nn.Module:
    module.load_state_dict(dict(_tensors(module, part, config, file, dtype)), assign=True)
    return module.eval()


def _tensors(
    module: nn.Module, part: str, config: Mapping[str, Any], file: Any, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    names = set(file.keys())
    for name in module.state_dict():
        place = where(part, name, config)
        if place.name not in names:
            raise ModelError(f"the {part} of this checkpoint lacks the tensor {place.name}; fetch the file again")
        yield name, place.take(file.get_tensor(place.name)).to(dtype, copy=True).contiguous()


def _scheduler(skeleton: Path, changes: Mapping[str, Any]) -> Any:
    config = {**read_json(skeleton / "scheduler" / "scheduler_config.json"), **changes}
    return getattr(diffusers, config["_class_name"]).from_config(config)
