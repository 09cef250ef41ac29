"""What an exported checkpoint takes from a base model besides the UNet: from its folder, or from its single file."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sdvq_core.diffusion.base_model import pipeline_folder
from sdvq_core.diffusion.components import Part, part_of_file, part_of_folder, specs_of_file
from sdvq_core.diffusion.folders import WEIGHTED, WORDED, read_head, read_json
from sdvq_core.diffusion.recognition import LDM_UNET
from sdvq_core.diffusion.single_file import empty_component
from sdvq_core.diffusion.sources import Source
from sdvq_core.store.images import write_bytes

BESIDE_UNET = tuple(part for part in WEIGHTED if part != "unet")
SCHEDULER = Path("scheduler") / "scheduler_config.json"


def parts_beside(source: Source, stack: ExitStack) -> dict[str, Part]:
    """Text encoders and VAE of a model; their files stay open until `stack` closes."""
    folder = pipeline_folder(source)
    if folder is not None:
        return {name: part_of_folder(folder / name, stack) for name in BESIDE_UNET}
    skeleton, path = Path(source.skeleton), Path(source.location)
    configs = {name: read_json(skeleton / name / "config.json") for name in BESIDE_UNET}
    return {
        name: part_of_file(name, list(empty_component(name, config).state_dict()), config, path, stack)
        for name, config in configs.items()
    }


def others(source: Source, stack: ExitStack) -> tuple[Part, dict[str, str]]:
    """(everything in a single file but its UNet, under the names there; its metadata without digests of the file)."""
    path = Path(source.location)
    file = stack.enter_context(safe_open(path, "pt"))
    specs = {name: spec for name, spec in specs_of_file(path).items() if not name.startswith(LDM_UNET)}
    metadata = {key: text for key, text in read_head(path)[1].items() if "hash" not in key}
    return Part({}, specs, file.get_tensor), metadata


def markers(source: Source | None) -> tuple[Part, dict[str, str]]:
    """(marker tensors, metadata) that tell other programs how a model from a folder is sampled."""
    config = {} if source is None else _scheduler(source)
    told = {"v_pred": config.get("prediction_type") == "v_prediction", "ztsnr": config.get("rescale_betas_zero_snr")}
    metadata = {"modelspec.prediction_type": "v"} if told["v_pred"] else {}
    if config.get("_class_name") == "EulerAncestralDiscreteScheduler":
        metadata["modelspec.title"] = "SDXL-Turbo"
    empty = torch.empty(0, dtype=torch.float16)
    return Part({}, {name: (empty.dtype, (0,)) for name, is_so in told.items() if is_so}, lambda _: empty), metadata


def copy_small(source: Source, target: Path) -> None:
    """The index, tokenizers and scheduler of a model, into the pipeline folder `target`."""
    folder = pipeline_folder(source) or Path(source.skeleton)
    for part in WORDED:
        shutil.copytree(folder / part, target / part)
    scheduler = _scheduler(source)
    index = {**read_json(folder / "model_index.json"), "scheduler": ["diffusers", scheduler["_class_name"]]}
    for path, config in ((Path("model_index.json"), index), (SCHEDULER, scheduler)):
        write_bytes(target / path, json.dumps(config, indent=2).encode() + b"\n")


def _scheduler(source: Source) -> dict[str, Any]:
    """The scheduler's settings, those that a single file changes included."""
    folder = pipeline_folder(source) or Path(source.skeleton)
    return {**read_json(folder / SCHEDULER), **dict(source.scheduler)}
