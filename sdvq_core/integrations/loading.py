"""From an artifact to a UNet that diffusers pipelines take, checked to the last byte."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.models.modeling_utils import no_init_weights
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from sdvq_core.errors import LayerError, StoreError
from sdvq_core.integrations.diffusers import SdvqConfig, make_native
from sdvq_core.nn import check_mode, make_ready, swap_layer
from sdvq_core.store import Artifact, is_artifact, read_artifact
from sdvq_core.store.manifest import card_metadata

log = logging.getLogger(__name__)


def build_unet(artifact: Artifact, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The UNet of `artifact`, on the CPU, in evaluation mode; what is kept is computed with in `dtype`."""
    try:
        with torch.device("meta"), no_init_weights():
            unet = UNet2DConditionModel.from_config(dict(artifact.unet_config))
        for name, weight in artifact.weights.items():
            swap_layer(unet, name, weight)
        missing, unexpected = unet.load_state_dict(_cast(artifact.kept, dtype), strict=False, assign=True)
    except (LayerError, RuntimeError, ValueError, TypeError) as error:  # what a forged config can lead to
        raise StoreError(f"the artifact does not fit its own config: {' '.join(str(error).split())}") from None
    state = unet.state_dict()  # once: a full-size UNet has thousands of names
    absent = [name for name in missing if state[name].is_meta]
    if absent or unexpected:
        raise StoreError(
            f"the artifact does not fit its own config: {(absent + unexpected)[0]} is missing or not expected"
        )
    card = card_metadata(artifact.records, artifact.versions, artifact.curve) if artifact.records else {}
    make_native(unet, SdvqConfig.of(artifact.manifest), card, dtype, frozenset(state))
    found: UNet2DConditionModel = unet.eval().requires_grad_(False)
    return found


def load_artifact(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, mode: str = "auto"
) -> UNet2DConditionModel:
    """The compressed UNet in `folder`, ready for `StableDiffusionXLPipeline(unet=…)`; StoreError if it is not sound.

    mode: "resident" decodes each weight once, now; "streaming" in every forward; "auto" is resident where `device` has
    the memory. Out of memory while decoding is a warning, and streaming.
    """
    check_mode(mode)
    path = Path(folder)
    if not is_artifact(path):
        raise StoreError(f"{path} is not an SDVQ artifact; pass a folder made by `python -m sdvq_core compress`")
    with _no_collection():
        unet = build_unet(read_artifact(path), dtype)
        if torch.device(device).type != "cpu":
            unet = unet.to(device)
    reason = make_ready(unet, mode, dtype)
    if reason is not None:
        log.warning("%s: %s", path, reason)
    return unet


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of modules and tensors are made, none of them garbage: looking for some takes as long as the rest."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cast(kept: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in kept.items()}
