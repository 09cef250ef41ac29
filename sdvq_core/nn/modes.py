"""How a whole UNet keeps its compressed weights in memory: chosen once, when it is ready on its device.

resident: decoded once; memory = codes + decoded weights. streaming: decoded in every forward; memory = codes, and what
decoding one weight takes for a moment. auto: resident where the decoded weights take at most half of what is free, else
streaming. Both modes compute the same numbers on a CPU; a GPU's fused product (`kernels.linear`) may round differently.
"""

from __future__ import annotations

import logging
from itertools import chain
from math import prod

import torch
from torch import nn

from sdvq_core.errors import ConfigError
from sdvq_core.memory import free_nbytes, is_out_of_memory
from sdvq_core.nn.layers import MODES, QuantizedLayer, set_mode
from sdvq_core.nn.swap import quantized_layers
from sdvq_core.qtensor import get_format
from sdvq_core.records import Footprint

RESERVE = 0.5  # share of the free memory that `auto` leaves for activations, for decoding images and for others
MODE_CHOICES = ("auto", *MODES)

log = logging.getLogger(__name__)


def check_mode(mode: str) -> str:
    """`mode`, if it is one that can be asked for."""
    if mode not in MODE_CHOICES:
        raise ConfigError(f"mode must be one of {', '.join(MODE_CHOICES)}, got {mode!r}")
    return mode


def make_ready(model: nn.Module, mode: str, dtype: torch.dtype) -> str | None:
    """Put `model`, which is on its device and computes in `dtype`, into `mode`, and decode what will be resident.

    Where memory runs out while decoding, all of the model is streaming and the answer is a sentence that says why.
    """
    set_mode(model, "streaming")
    if check_mode(mode) == "streaming" or (mode == "auto" and not _fits(model, dtype)):
        return None
    set_mode(model, "resident")
    try:
        for _, layer in quantized_layers(model):
            layer.decoded(dtype)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        set_mode(model, "streaming")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"memory ran out while weights were decoded ({reason}); they are now decoded in every step (streaming)"
    return None


def choose_mode(model: nn.Module, dtype: torch.dtype) -> None:
    """`auto` for a model that will move and decode later: nothing is decoded now, and `choose_again` may differ."""
    set_mode(model, "resident" if _fits(model, dtype) else "streaming")
    for _, layer in quantized_layers(model):
        layer.auto = True


def choose_again(model: nn.Module) -> None:
    """Choose anew where `model` is now, unless somebody has said since `choose_mode` which mode it shall be in."""
    layers = [layer for _, layer in quantized_layers(model)]
    if layers and all(layer.auto for layer in layers):
        choose_mode(model, layers[0].dtype)


def mode_of(model: nn.Module) -> str:
    """ "streaming" if a layer of `model` is, else "resident"; float weights always are."""
    return "streaming" if any(layer.mode == "streaming" for _, layer in quantized_layers(model)) else "resident"


def footprint(model: nn.Module) -> Footprint:
    """What the weights of `model` take in memory now, as it is ready to run."""
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    layers = [layer for _, layer in quantized_layers(model)]
    copies = [layer._decoded for layer in layers if layer._decoded is not None]
    decoded = sum(copy.nbytes for copy in copies)
    passing = max((_decoding_nbytes(layer, _dtype(model)) for layer in layers if layer.mode == "streaming"), default=0)
    return Footprint(mode_of(model), sum(tensor.nbytes for tensor in tensors.values()) + decoded, decoded, passing)


def _fits(model: nn.Module, dtype: torch.dtype) -> bool:
    layers = [layer for _, layer in quantized_layers(model)]
    if not layers:
        return True
    needed, device = sum(_decoded_nbytes(layer, dtype) for layer in layers), next(layers[0].buffers()).device
    room = int(free_nbytes(device) * (1 - RESERVE))
    if needed > room:
        log.info("%d bytes of decoded weights exceed the %d bytes that may be used: streaming", needed, room)
    return needed <= room


def _decoded_nbytes(layer: QuantizedLayer, dtype: torch.dtype) -> int:
    return prod(layer.shape) * dtype.itemsize


def _decoding_nbytes(layer: QuantizedLayer, dtype: torch.dtype) -> int:
    device = next(iter(layer.stored.values())).device
    return get_format(layer.form).decoding_nbytes(layer.shape, layer.meta, dtype, device)


def _dtype(model: nn.Module) -> torch.dtype:
    """What `model` computes in: the dtype of what is not compressed."""
    return next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float32)
