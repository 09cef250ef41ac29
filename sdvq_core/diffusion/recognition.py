"""What a safetensors file holds, told by the names and shapes in its header; light, no torch, no diffusers.

One table, `FOREIGN`, names what SDVQ does not read; what it reads is an SDXL-family UNet, with what belongs to it or
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdvq_core.errors import ModelError

Header = Mapping[str, Mapping[str, Any]]

LDM_UNET = "model.diffusion_model."
TEXT_1 = "conditioner.embedders.0.transformer."
TEXT_2 = "conditioner.embedders.1.model."
REFINER_TEXT = "conditioner.embedders.0.model."
VAE = "first_stage_model."
FLOATS = ("F16", "BF16", "F32", "F64")
READS = "SDVQ reads SDXL-family checkpoints in the original layout: SDXL, SDXL-Turbo and their fine-tunes"

FOREIGN = (  # what a file is, and parts of names that only such a file has
    ("a LoRA", ("lora_unet_", "lora_te", ".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "lora.down", "hada_w1")),
    ("a ControlNet", ("control_model.", "controlnet_cond_embedding.", "input_hint_block.")),
    ("a Stable Diffusion 3 checkpoint", ("joint_blocks.",)),
    ("a Flux checkpoint", ("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    ("a Stable Diffusion 2 checkpoint", ("cond_stage_model.model.",)),
    ("a Stable Diffusion 1 checkpoint", ("cond_stage_model.transformer.",)),
    ("a textual inversion", ("emb_params", "string_to_param")),
    ("an SDVQ artifact's weights, whose folder is to be passed,", ("sdvq_codebooks.", ".codebooks", ".codes")),
)
LDM_CONV_IN = LDM_UNET + "input_blocks.0.0.weight"
LDM_CONV_OUT = LDM_UNET + "out.2.weight"
LDM_ADDED = LDM_UNET + "label_emb.0.0.weight"


@dataclass(frozen=True)
class UNetShape:
    """What the first and last convolution of a UNet tell: its width, and channels in and out."""

    width: int
    channels_in: int
    channels_out: int


def unet_shape(header: Header, where: str) -> UNetShape:
    """The UNet in a single file; ModelError names what the file is instead."""
    foreign = next((what for what, parts in FOREIGN if _has(header, parts)), None)
    if foreign is not None:
        raise ModelError(f"{where} is {foreign}; {READS}, and diffusers pipeline folders of them")
    try:
        (width, channels_in), channels_out = (header[LDM_CONV_IN]["shape"][:2], header[LDM_CONV_OUT]["shape"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        raise ModelError(
            f"{where} is not an SDXL checkpoint (it lacks {LDM_UNET}*); {READS}; a UNet in diffusers' layout is "
            "passed as its folder, a VAE or text encoder alone makes no image"
        ) from None
    if LDM_ADDED not in header:
        raise ModelError(f"{where} is a UNet of Stable Diffusion 1 or 2 (it lacks {LDM_ADDED}); {READS}")
    return UNetShape(int(width), int(channels_in), int(channels_out))


def why_no_image(header: Header, shape: UNetShape) -> str:
    """Why no image can be drawn with a single file; empty where one can."""
    if shape.channels_in != shape.channels_out:
        return _channels(shape.channels_in, shape.channels_out)
    if _has(header, (REFINER_TEXT,)):
        return "it is a refiner, which finishes images of another model"
    absent = [what for what, prefix in (("text encoders", TEXT_2), ("VAE", VAE)) if not _has(header, (prefix,))]
    return f"it is a UNet without {' and '.join(absent)}" if absent else ""


def why_no_image_config(config: Mapping[str, Any]) -> str:
    """Why no image can be drawn with a UNet of this diffusers configuration; empty where one can."""
    channels_in, channels_out = config.get("in_channels", 4), config.get("out_channels", 4)
    return "" if channels_in == channels_out else _channels(channels_in, channels_out)


def check_dtypes(header: Header, where: str, prefixes: tuple[str, ...] = ("",)) -> None:
    """Raise ModelError where a weight is stored in fp8 or as integers."""
    for name, entry in header.items():
        if name.startswith(prefixes) and not name.endswith("position_ids") and entry["dtype"] not in FLOATS:
            raise ModelError(
                f"{where} stores {name} as {entry['dtype']}; SDVQ compresses original weights in {', '.join(FLOATS)}, "
                "not quantized ones: pass the checkpoint that this one was made from"
            )


def _channels(channels_in: int, channels_out: int) -> str:
    kind = {9: "an inpainting UNet", 8: "an image-editing UNet"}.get(channels_in, "a UNet for other inputs")
    return f"it is {kind} ({channels_in} channels in, {channels_out} out)"


def _has(header: Header, parts: tuple[str, ...]) -> bool:
    return any(part in name for name in header for part in parts)
