"""Quantized layers, and putting them in the place of float ones."""

from sdvq_core.nn.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear, SharedCodebooks, kind_of, set_mode
from sdvq_core.nn.prompt_cache import PromptCache
from sdvq_core.nn.swap import quantized_layers, swap_layer, swap_spec

__all__ = [
    "PromptCache",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "SharedCodebooks",
    "kind_of",
    "quantized_layers",
    "set_mode",
    "swap_layer",
    "swap_spec",
]
