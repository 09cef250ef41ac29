"""What lies in a diffusers pipeline folder or a safetensors file, read without torch or diffusers.

A safetensors file: uint64 header length n (little endian), n bytes of JSON {name: {dtype, shape, data_offsets}}, data.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdvq_core.diffusion.recognition import why_no_image_config
from sdvq_core.errors import ModelError

PIPELINE_CLASSES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
WEIGHTED = ("text_encoder", "text_encoder_2", "unet", "vae")
WORDED = ("tokenizer", "tokenizer_2")
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
MAX_HEADER_BYTES = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; pass a complete diffusers pipeline folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object; fetch it again")
    return value


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> {dtype, shape, data_offsets} of a safetensors file, which must be as long as it says."""
    return read_head(path)[0]


def read_head(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(`read_header`, metadata) of a safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (OSError, ValueError, AttributeError, TypeError, KeyError, IndexError):
        raise ModelError(f"{path} is damaged or not a safetensors file; fetch it again") from None
    if size != end:
        raise ModelError(f"{path} is damaged: {size} bytes where its header says {end}; fetch it again")
    return header, metadata


def check_pipeline(folder: Path) -> str:
    """Raise ModelError unless `folder` is a diffusers pipeline of the SDXL family with safetensors weights.

    Why no image can be drawn with it, though its UNet is SDXL's (a refiner, an inpainting model); empty where one can.
    """
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"{folder} has no model_index.json, so it is not a diffusers pipeline: pass a folder that has one"
        )
    check_pipeline_config(folder, str(folder))
    index = read_json(folder / "model_index.json")
    reason = check_unet_folder(folder / "unet")
    absent = [part for part in (*WEIGHTED, *WORDED) if not _has(index, part)]
    if reason or absent:
        return reason or f"it has no {' and no '.join(absent)}, like SDXL's refiner"
    for part in WEIGHTED:
        weight_files(folder / part)
    for path in (folder / "scheduler" / "scheduler_config.json", *(folder / part for part in WORDED)):
        if not path.exists():
            raise ModelError(f"{path} is missing; pass a complete diffusers pipeline folder")
    return ""


def check_pipeline_config(folder: Path, name: str) -> None:
    """Raise ModelError, which says `name`, where what `folder` has of a pipeline tells that it is not SDXL's."""
    index = read_json(folder / "model_index.json")
    check_pipeline_class(index.get("_class_name"), name)
    if not _has(index, "unet"):
        raise ModelError(f"{name} has no unet; pass a complete diffusers pipeline folder")
    if (folder / "unet" / "config.json").is_file():
        check_unet_config(read_json(folder / "unet" / "config.json"), name)


def check_pipeline_class(found: object, name: str) -> None:
    """Raise ModelError unless the pipeline `name` is of a class of the SDXL family."""
    if found not in PIPELINE_CLASSES:
        raise ModelError(f"{name} is a {found}; SDVQ reads SDXL-family pipelines ({', '.join(PIPELINE_CLASSES)})")


def check_unet_folder(folder: Path) -> str:
    """Raise ModelError unless `folder` holds an SDXL-family UNet; why no image can be drawn with it, else empty."""
    config = read_json(folder / "config.json")
    check_unet_config(config, str(folder))
    weight_files(folder)
    return why_no_image_config(config)


def is_unet_folder(folder: Path) -> bool:
    """Whether `folder` is a UNet component by itself, the `unet` folder of a pipeline."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("_class_name") == "UNet2DConditionModel"


def check_unet_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ModelError unless the UNet is of SDXL's design, whatever its channels."""
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        raise ModelError(f"the UNet in {where} is quantized already ({method}); pass the original model")
    plain = not config.get("time_cond_proj_dim") and not config.get("encoder_hid_dim_type")
    sized = isinstance(config.get("block_out_channels"), list)
    if config.get("addition_embed_type") != "text_time" or not (plain and sized):
        raise ModelError(
            f"the UNet in {where} is not SDXL's: SDVQ reads UNet2DConditionModel with addition_embed_type 'text_time', "
            "block_out_channels, no time_cond_proj_dim or encoder_hid_dim_type"
        )


def _has(index: Mapping[str, Any], part: str) -> bool:
    return isinstance(index.get(part), list) and any(index[part])


def weight_files(folder: Path) -> tuple[str | None, list[Path]]:
    """(variant, safetensors files) of a component folder; the fp16 variant where there is one."""
    for variant in ("fp16", None):
        files = _stored(folder, variant)
        if files:
            return variant, files
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise ModelError(refusal(folder / pickles[0]))
    raise ModelError(f"{folder} holds no safetensors weights; pass a complete diffusers pipeline folder")


def refusal(path: Path) -> str:
    """Why a pickle is not read, and the command that converts it."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        's = torch.load(sys.argv[1], map_location="cpu", weights_only=True); s = s.get("state_dict", s); '
        "s = {k: v.contiguous().clone() for k, v in s.items() if torch.is_tensor(v)}; "
        'save_file(s, sys.argv[2], {"format": "pt"})'
    )
    stem = path.stem.replace("pytorch_model", "model") if path.stem.startswith("pytorch_model") else path.stem
    command = shlex.join(["python", "-c", code, path.name, f"{stem}.safetensors"])
    return (
        f"{path} is a pickle, which can run code when it is opened; convert it to safetensors first: "
        f"in its folder run {command}"
    )


def nano_sized(config: Mapping[str, Any]) -> bool:
    """Whether a UNet of this config is small enough for a CPU: SDXL and its distillations are 1280 wide."""
    widest = max(int(width) for width in config["block_out_channels"])
    return widest < 640


def resolution(folder: Path, config: Mapping[str, Any]) -> int:
    """Pixels of the square image that the pipeline in `folder` makes: latent cells times the VAE's factor."""
    vae = read_json(folder / "vae" / "config.json")
    cells = config.get("sample_size") or 128
    factor: int = 2 ** max(0, len(vae.get("block_out_channels", (64,))) - 1)
    return int(cells if isinstance(cells, int) else cells[0]) * factor


def _stored(folder: Path, variant: str | None) -> list[Path]:
    dot = f".{variant}" if variant else ""
    for stem in ("diffusion_pytorch_model", "model"):
        single = folder / f"{stem}{dot}.safetensors"
        if single.is_file():
            return [single]
        for index in (folder / f"{stem}.safetensors.index{dot}.json", folder / f"{stem}{dot}.safetensors.index.json"):
            if index.is_file():
                return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(f"{index} has no weight_map; fetch it again")
    paths = [index.parent / str(name) for name in sorted(set(names.values()))]
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{path} is missing, {index.name} names it; fetch it again")
    return paths
