"""LoRA adapters over compressed layers. PEFT takes them for the float layers that they are (`isinstance`).

A LoRA that does not fit is refused before it changes anything; one that would do nothing is an error, no warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sdvq_core.errors import ConfigError

_DOWN = re.compile(r"(?P<layer>.+?)\.(?:lora_A|lora\.down|lora_down|lora_linear_layer\.down)(?:\.\w+)?\.weight")
_UP = re.compile(r"(?P<layer>.+?)\.(?:lora_B|lora\.up|lora_up|lora_linear_layer\.up)(?:\.\w+)?\.weight")
_FETCHING = (  # what diffusers' method takes to find a file
    "weight_name",
    "use_safetensors",
    "local_files_only",
    "cache_dir",
    "force_download",
    "proxies",
    "token",
    "revision",
    "subfolder",
    "metadata",
)
_WANTED = "pass one that was trained on this model's family"
_ELSEWHERE = ("text_encoder", "text_model", "lora_te")  # where else a LoRA of this family may have its weights


def load_lora_adapter(
    own: Any,
    model: nn.Module,
    pretrained_model_name_or_path_or_dict: Any,
    prefix: str | None = "transformer",
    hotswap: bool = False,
    **kwargs: Any,
) -> None:
    """diffusers' method `own`; ConfigError, with the model as it was, where the LoRA fits no layer or other shapes."""
    weights = pretrained_model_name_or_path_or_dict
    if not isinstance(weights, Mapping):
        weights, kwargs = _fetched(weights, kwargs)
    check_fits(model, weights, prefix)
    own(model, weights, prefix, hotswap, **kwargs)


def _fetched(place: Any, kwargs: Mapping[str, Any]) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """(weights by name, what is left of `kwargs`) of a LoRA in a file or on the Hub, found as diffusers does."""
    from diffusers.loaders.lora_base import _fetch_state_dict  # here: it imports what registers this package

    asked = {name: kwargs.get(name) for name in _FETCHING}
    weights, metadata = _fetch_state_dict(
        place, **asked, user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"}, allow_pickle=False
    )
    return weights, {**{name: kwargs[name] for name in kwargs if name not in _FETCHING}, "metadata": metadata}


def check_fits(model: nn.Module, weights: Mapping[str, Tensor], prefix: str | None) -> None:
    """ConfigError unless the LoRA `weights`, by name, fit layers of `model`, or are for other parts alone."""
    start = f"{prefix}." if prefix else ""
    own = {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}
    if not own:
        if not any(name.startswith(_ELSEWHERE) for name in weights):
            first = next(iter(weights), "none")
            advice = "; pass prefix='unet'" if first.startswith("unet.") else ""
            raise ConfigError(f"the LoRA has no weights for a UNet of SDXL; its first is {first}{advice}")
        return
    layers, sides = dict(model.named_modules()), [*_sides(own, _DOWN, 1), *_sides(own, _UP, 0)]
    for name, size, side in sides:
        layer = _below(layers.get(name))
        if layer is not None and _size(layer, side) != size:
            raise ConfigError(
                f"the LoRA was made for another architecture: {name} has {_size(layer, side)} "
                f"{'inputs' if side else 'outputs'} here, {size} there; {_WANTED}"
            )
    if sides and not any(name in layers for name, _, _ in sides):
        raise ConfigError(
            f"the LoRA was made for another architecture: this model has none of its layers, such as {sides[0][0]}; "
            f"{_WANTED}"
        )


def _sides(weights: Mapping[str, Tensor], pattern: re.Pattern[str], side: int) -> list[tuple[str, int, int]]:
    """(layer, size, side) of every weight that matches; side: 1 for inputs, 0 for outputs."""
    found = [(pattern.fullmatch(name), tensor) for name, tensor in weights.items()]
    return [(match["layer"], tensor.shape[side], side) for match, tensor in found if match and tensor.ndim > 1]


def _below(layer: nn.Module | None) -> nn.Module | None:
    """The layer under adapters that are there already."""
    inner = getattr(layer, "base_layer", layer)
    return inner if isinstance(inner, nn.Linear | nn.Conv2d) else None


def _size(layer: nn.Module, side: int) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features if side else layer.out_features
    assert isinstance(layer, nn.Conv2d)
    return layer.in_channels if side else layer.out_channels
