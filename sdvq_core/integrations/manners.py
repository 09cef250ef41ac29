"""How a compressed model answers what diffusers asks of every model: what it does another way, and what it refuses.

Refusals come before anything is changed. Adapters, whose keys and shapes are checked first, are in `adapters`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.integrations.adapters import load_lora_adapter
from sdvq_core.integrations.own_ways import Way, teach
from sdvq_core.nn import choose_again, quantized_layers
from sdvq_core.store.artifact import digest


def adopt(model: Any) -> None:
    """Give `model`, which holds compressed layers, its manners."""
    refusals = {name: _refusing(reason) for name, reason in _REFUSED.items()}
    ways: dict[str, Way] = {"save_pretrained": _save, "num_parameters": _count, "load_lora_adapter": load_lora_adapter}
    teach(type(model), {**dict.fromkeys(_MOVES, _move), **refusals, **ways})


def halves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is stored of a model's tensors: codes as they are, everything else in float16."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _save(own: Way, model: Any, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
    """With a manifest whose SHA-256 is that of the tensors as they are now."""
    if kwargs.get("safe_serialization") is False:
        raise ConfigError("a compressed model is saved as safetensors only; leave safe_serialization as it is")
    quantizer, state = model.hf_quantizer, model.state_dict()
    extra = sorted(set(state) - quantizer.names)
    if extra:
        raise ConfigError(
            f"the model holds {extra[0]}, which is no part of it; unload adapters first (unload_lora_weights, "
            "unload_ip_adapter) and keep a LoRA by save_lora_adapter"
        )
    config = quantizer.quantization_config
    config.manifest = replace(config.manifest, sha256=digest(halves(state)))
    try:
        own(model, save_directory, *args, **kwargs)
    finally:
        model.register_to_config(quantization_config=config)  # diffusers leaves what it has written there


def _count(own: Way, model: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """A compressed weight counts as the weights that it stands for, which are not trainable."""
    kept: int = own(model, only_trainable, exclude_embeddings)
    return kept if only_trainable else kept + sum(prod(layer.shape) for _, layer in quantized_layers(model))


_MOVES = ("to", "half", "float", "cuda", "cpu")


def _move(own: Way, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Codes keep their dtype, so that casting is allowed; diffusers refuses it to whatever `is_quantized`."""
    model.is_quantized = False
    try:
        own(model, *args, **kwargs)
    finally:
        model.is_quantized = True
    if not any(tensor.is_meta for tensor in model.parameters()):
        choose_again(model)
    return model


_FLOATS = "call dequantize() on the model first, which makes it a float model"
_REFUSED = {
    "fuse_lora": f"fused weights would be floats, not codes; keep the LoRA as an adapter (set_adapters), or {_FLOATS}",
    "fuse_qkv_projections": f"fused projections would be floats beside the codes; {_FLOATS}",
    "enable_layerwise_casting": f"codes are smaller than any float and cannot be cast; {_FLOATS}",
}


def _refusing(reason: str) -> Way:
    def refuse(own: Way, model: Any, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(f"this model is compressed: {reason}")

    return refuse
