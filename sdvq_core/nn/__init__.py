"""Quantized layers, putting them in the place of float ones, and how they keep their weights in memory."""

from sdvq_core.nn.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear, SharedCodebooks, kind_of, set_mode
from sdvq_core.nn.modes import MODE_CHOICES, check_mode, choose_again, choose_mode, footprint, make_ready, mode_of
from sdvq_core.nn.prompt_cache import PromptCache
from sdvq_core.nn.swap import quantized_layers, swap_layer, swap_spec

__all__ = [
    "MODE_CHOICES",
    "PromptCache",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "SharedCodebooks",
    "check_mode",
    "choose_again",
    "choose_mode",
    "footprint",
    "kind_of",
    "make_ready",
    "mode_of",
    "quantized_layers",
    "set_mode",
    "swap_layer",
    "swap_spec",
]
