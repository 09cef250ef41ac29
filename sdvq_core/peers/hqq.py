"""`lib.hqq`: half-quadratic quantization by its authors' library (`HQQLinear`, https://pypi.org/project/hqq).

Groups of the flattened weight, each with a float16 scale and zero point. The library has no path for convolutions and
refuses weights whose groups do not fill its packing; diffusers has no integration of it, so `own` gives it every
Linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdvq_core.knobs import knob
from sdvq_core.peers.base import Layer, Peer, Stored, as_matrix, register


@register("hqq", "HQQ (library)")
@dataclass(frozen=True)
class HqqLibrary(Peer):
    """Half-quadratic scalar quantization as the hqq package computes and stores it; convolutions as matrices."""

    package = "hqq"
    bit_widths = (1, 2, 3, 4, 8)

    bits: int = knob(4, "Bits per weight", choices=(1, 2, 3, 4, 8))
    group_size: int = knob(64, "Weights per scale", choices=(16, 32, 64, 128, 256))

    @property
    def nominal_bits(self) -> float:
        return float(self.bits)

    def quantize(self, layer: Layer) -> Stored:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        config = BaseQuantizeConfig(nbits=self.bits, group_size=self.group_size)
        made = HQQLinear(
            _linear(as_matrix(layer)), config, compute_dtype=torch.float16, device=str(layer.weight.device)
        )
        weight: Tensor = made.dequantize().reshape(layer.weight.shape)
        return Stored.of(weight, made.dequantize, codes=[made.W_q], scales=[made.meta["scale"], made.meta["zero"]])


def _linear(matrix: Tensor) -> nn.Linear:
    """A Linear without bias whose weight is a copy of `matrix` [O, n]: the library takes the layer apart."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(matrix.clone(), requires_grad=False)
    return layer
