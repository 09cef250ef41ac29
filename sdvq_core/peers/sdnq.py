"""`lib.sdnq`: SD.Next's quantization engine by its public functions (https://pypi.org/project/sdnq).

SDNQ is licensed under the GPL, version 3; nothing of it is part of this program, which calls it where a user has
installed it. The library chooses the group size by layer and type unless told, keeps scales and zero points in
float32 by default, and has a path for convolutions that its users must switch on: `same` does, `own` is diffusers'
`SDNQConfig` as it comes, which quantizes Linear layers of some size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sdvq_core.knobs import knob
from sdvq_core.peers.base import Layer, Peer, Stored, register
from sdvq_core.peers.folders import reloaded

_SIGNED = 6  # its documentation recommends int8, int7, int6, and uint5 and below


@register("sdnq", "SDNQ")
@dataclass(frozen=True)
class Sdnq(Peer):
    """Integer weights with scales and zero points by SDNQ, which has a path for convolutions."""

    package = "sdnq"
    bit_widths = (2, 3, 4, 5, 6, 7, 8)

    bits: int = knob(4, "Bits per weight", choices=(2, 3, 4, 5, 6, 7, 8))
    group_size: int = knob(0, "Weights per scale, 0: chosen by the library", choices=(0, 32, 64, 128))

    @property
    def nominal_bits(self) -> float:
        return float(self.bits)

    def quantize(self, layer: Layer) -> Stored:
        from sdnq import SDNQConfig, sdnq_quantize_layer

        config = SDNQConfig(
            weights_dtype=self._type,
            group_size=self.group_size,
            quant_conv=True,
            minimum_allowed_numel=0,
            minimum_allowed_channel_size=0,
            add_skip_keys=False,
        )
        with torch.compiler.set_stance("force_eager"):  # a weight is quantized once: compiling takes longer
            return _read(sdnq_quantize_layer(layer, config)[0])

    def own(self, unet: nn.Module) -> Iterator[tuple[str, Stored | str]]:
        from sdnq import SDNQConfig
        from sdnq.layers import SDNQLayer

        with torch.compiler.set_stance("force_eager"):
            made = reloaded(unet, SDNQConfig(weights_dtype=self._type, group_size=self.group_size))
            layers = {name: module for name, module in made.named_modules() if isinstance(module, SDNQLayer)}
            yield from ((name, _read(module)) for name, module in layers.items())

    @property
    def _type(self) -> str:
        return f"int{self.bits}" if self.bits >= _SIGNED else f"uint{self.bits}"


def _read(module: nn.Module) -> Stored:
    """`weight` holds the codes; all else but the bias scales them. Reading turns the layer back into a plain one."""
    kept = {name: array for name, array in module.state_dict().items() if name != "bias"}
    codes = kept.pop("weight")
    plain = module.dequantize()  # type: ignore[operator]
    return Stored.of(plain.weight, codes=[codes], scales=list(kept.values()))
