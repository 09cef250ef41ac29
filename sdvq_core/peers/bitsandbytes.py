"""`lib.bitsandbytes`: 4-bit blocks by bitsandbytes itself (`quantize_4bit`, https://pypi.org/project/bitsandbytes).

Two codes to a byte, one float32 maximum per block of the flattened weight, a table of 16 levels; with double
quantization the maxima are 8-bit codes themselves. diffusers' integration replaces every Linear, and runs on GPUs
only: `own` quantizes each Linear by the same function, on any device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.knobs import Value, knob
from sdvq_core.peers.base import Layer, Peer, Stored, as_matrix, register


@register("bitsandbytes", "bitsandbytes")
@dataclass(frozen=True)
class BitsAndBytes(Peer):
    """NF4 and FP4 blocks as bitsandbytes computes and stores them; convolutions as matrices."""

    package = "bitsandbytes"
    bit_widths = (4,)

    type: str = knob("nf4", "Levels", choices=("nf4", "fp4"))
    block_size: int = knob(64, "Weights per scale", choices=(64, 128, 256, 512))
    double_quant: str = knob("no", "Quantize the scales as well", choices=("no", "yes"))

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        if bits != 4:
            raise ConfigError(f"{cls.name}.bits must be 4, got {bits:g}")
        return {}

    @property
    def nominal_bits(self) -> float:
        return 4.0

    @property
    def method(self) -> str:
        return f"{self.label} {self.type.upper()}"

    def quantize(self, layer: Layer) -> Stored:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        nested = self.double_quant == "yes"
        codes, state = quantize_4bit(
            as_matrix(layer), blocksize=self.block_size, compress_statistics=nested, quant_type=self.type
        )
        weight: Tensor = dequantize_4bit(codes, state).reshape(layer.weight.shape)
        codebooks, scales = [state.code], [state.absmax]
        if nested:
            codebooks.append(state.state2.code)
            scales += [state.state2.absmax, state.offset]
        again = partial(dequantize_4bit, codes, state)
        return Stored.of(weight, again, codes=[codes], codebooks=codebooks, scales=scales)
