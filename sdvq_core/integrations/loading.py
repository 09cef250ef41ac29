"""From an artifact to a UNet that diffusers pipelines take, checked to the last byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from sdvq_core.errors import LayerError, StoreError
from sdvq_core.nn import set_mode, swap_layer
from sdvq_core.store import Artifact, is_artifact, read_artifact


def build_unet(artifact: Artifact, dtype: torch.dtype = torch.float32, mode: str = "resident") -> UNet2DConditionModel:
    """The UNet of `artifact`, on the CPU, in evaluation mode; what is kept is computed with in `dtype`."""
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(dict(artifact.unet_config))
        for name, weight in artifact.weights.items():
            swap_layer(unet, name, weight)
        missing, unexpected = unet.load_state_dict(_cast(artifact.kept, dtype), strict=False, assign=True)
    except (LayerError, RuntimeError, ValueError, TypeError) as error:  # what a forged config can lead to
        raise StoreError(f"the artifact does not fit its own config: {' '.join(str(error).split())}") from None
    absent = [name for name in missing if unet.state_dict()[name].is_meta]
    if absent or unexpected:
        raise StoreError(
            f"the artifact does not fit its own config: {(absent + unexpected)[0]} is missing or not expected"
        )
    set_mode(unet, mode)
    return unet.eval().requires_grad_(False)


def load_artifact(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, mode: str = "resident"
) -> UNet2DConditionModel:
    """The compressed UNet in `folder`, ready for `StableDiffusionXLPipeline(unet=…)`; StoreError if it is not sound.

    mode: "resident" decodes each weight once, "streaming" in every forward.
    """
    path = Path(folder)
    if not is_artifact(path):
        raise StoreError(f"{path} is not an SDVQ artifact; pass a folder made by `python -m sdvq_core compress`")
    return build_unet(read_artifact(path), dtype, mode).to(device)


def _cast(kept: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in kept.items()}
