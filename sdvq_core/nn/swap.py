"""Putting quantized layers in the place of float ones, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sdvq_core.errors import LayerError
from sdvq_core.ledger import SHARED_PREFIX
from sdvq_core.nn.layers import LAYERS, QuantizedLayer, SharedCodebooks, kind_of
from sdvq_core.qtensor import Meta, QuantizedTensor


def swap_spec(model: nn.Module, name: str, form: str, meta: Meta, shape: Sequence[int]) -> QuantizedLayer:
    """Replace layer `name`, of a weight of `shape`, by an empty quantized one (arrays on the meta device)."""
    path, _, child = name.rpartition(".")
    try:
        parent = model.get_submodule(path)
        original = parent.get_submodule(child)
    except AttributeError:
        raise LayerError(name, "no such layer in this model") from None
    layer_type = next((layer for layer in LAYERS if layer.kind == kind_of(original)), None)
    if layer_type is None:
        raise LayerError(name, f"is a {type(original).__name__}; only Linear and Conv2d can be compressed")
    weight = original.weight
    assert isinstance(weight, Tensor)
    if tuple(weight.shape) != tuple(shape):
        raise LayerError(name, f"has the shape {list(weight.shape)}, the compressed weight {list(shape)}")
    if getattr(original, "padding_mode", "zeros") != "zeros":
        raise LayerError(name, f"pads with {original.padding_mode!r}; only padding with zeros is supported")
    shared = shared_codebooks(model)
    layer = layer_type(original, form, meta, shared)
    layer.training = original.training
    for spec in layer.specs.values():
        if spec.shared and spec.shared not in shared:
            shared.put(spec.shared, torch.empty(spec.shape, dtype=spec.dtype, device="meta"))
    setattr(parent, child, layer)
    return layer


def swap_layer(model: nn.Module, name: str, weight: QuantizedTensor) -> QuantizedLayer:
    """Replace layer `name` by a quantized one that holds `weight`."""
    layer = swap_spec(model, name, weight.format, weight.meta, weight.shape)
    layer.fill(weight.tensors)
    return layer


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """(name, layer) of every quantized layer, in the order of the network."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLayer))


def shared_codebooks(model: nn.Module) -> SharedCodebooks:
    """The model's codebook container, made when it is first asked for."""
    name = SHARED_PREFIX.rstrip(".")
    found = getattr(model, name, None)
    if not isinstance(found, SharedCodebooks):
        found = SharedCodebooks()
        model.add_module(name, found)
    return found
