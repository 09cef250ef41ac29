"""Compressed text encoders: an artifact folder per encoder, put in the place of a pipeline's own, or into a new one.

Weights are decoded whenever a prompt is encoded, which is once per image: what stays in memory is the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.diffusion.placement import TEXT
from sdvq_core.errors import LayerError, StoreError
from sdvq_core.nn import set_mode, swap_layer
from sdvq_core.store import Artifact, is_artifact, read_artifact

_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")


def load_text_encoders(folder: str | Path, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """`text_encoder` and `text_encoder_2` of `folder`, as arguments of `StableDiffusionXLPipeline.from_pretrained`."""
    path = Path(folder)
    missing = [name for name in TEXT if not is_artifact(path / name)]
    if missing:
        raise StoreError(
            f"{path} has no compressed {missing[0]}; pass a folder made by `compress --text-encoders … --out`"
        )
    return {name: _build(read_artifact(path / name), dtype) for name in TEXT}


def take_weights(encoder: nn.Module, artifact: Artifact, dtype: torch.dtype) -> None:
    """Replace the weights of `encoder`, in place, by those of `artifact`, on the CPU; the others compute in `dtype`."""
    try:
        for name, weight in artifact.weights.items():
            swap_layer(encoder, name, weight)
        kept = {name: _cast(tensor, dtype) for name, tensor in artifact.kept.items()}
        missing, unexpected = encoder.load_state_dict(kept, strict=False, assign=True)
    except (LayerError, RuntimeError) as error:
        raise StoreError(
            f"the compressed text encoder does not fit its model: {' '.join(str(error).split())}"
        ) from None
    absent = [name for name in missing if encoder.state_dict()[name].is_meta]
    if absent or unexpected:
        raise StoreError(f"the compressed text encoder lacks {(absent + unexpected)[0]}, or should not have it")
    set_mode(encoder, "streaming")
    encoder.eval().requires_grad_(False)


def config_of(encoder: Any) -> dict[str, Any]:
    """The encoder's configuration, from which `load_text_encoders` makes another."""
    return {**encoder.config.to_dict(), "architectures": [type(encoder).__name__]}


def _build(artifact: Artifact, dtype: torch.dtype) -> nn.Module:
    import transformers

    config: Mapping[str, Any] = artifact.unet_config
    kind = next(iter(config.get("architectures") or ("",)))
    if kind not in _CLASSES:
        raise StoreError(f"the folder holds a {kind or 'model of no known class'}; expected {' or '.join(_CLASSES)}")
    with torch.device("meta"):
        encoder: nn.Module = getattr(transformers, kind)(transformers.CLIPTextConfig.from_dict(dict(config)))
    take_weights(encoder, artifact, dtype)
    _number_positions(encoder)
    return encoder


def _number_positions(encoder: nn.Module) -> None:
    """Buffers that no file holds: the positions 0, 1, … of the tokens."""
    for module in encoder.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
