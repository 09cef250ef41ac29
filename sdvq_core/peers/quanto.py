"""`lib.quanto`: optimum-quanto's integer weights (`quantize` and `freeze`, https://pypi.org/project/optimum-quanto).

2 and 4 bits: groups with a float16 scale and shift; 8 bits: a scale per row. The library has layers for Linear and
Conv2d, which `same` uses; `own` is diffusers' `QuantoConfig`, which replaces every Linear and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from sdvq_core.knobs import knob
from sdvq_core.peers.base import Layer, Peer, Stored, register
from sdvq_core.peers.folders import reloaded


@register("quanto", "quanto")
@dataclass(frozen=True)
class Quanto(Peer):
    """Integer weights with group-wise scales and shifts by optimum-quanto, which has a path for convolutions."""

    package = "optimum-quanto"
    bit_widths = (2, 4, 8)

    bits: int = knob(4, "Bits per weight", choices=(2, 4, 8))

    @property
    def nominal_bits(self) -> float:
        return float(self.bits)

    def quantize(self, layer: Layer) -> Stored:
        from optimum.quanto import freeze, quantize

        holder = nn.Sequential(layer)
        quantize(holder, weights=f"qint{self.bits}")
        freeze(holder)
        return _read(holder[0])

    def own(self, unet: nn.Module) -> Iterator[tuple[str, Stored | str]]:
        from diffusers import QuantoConfig
        from optimum.quanto.nn import QModuleMixin

        made = reloaded(unet, QuantoConfig(weights_dtype=f"int{self.bits}"))
        for name, module in made.named_modules():
            if isinstance(module, QModuleMixin):
                yield name, _read(module)


def _read(module: nn.Module) -> Stored:
    """Codes are the arrays called `_data`; `_scale` and `_shift` belong to the groups or rows."""
    kept = {name: array for name, array in module.state_dict().items() if name.startswith("weight.")}
    codes = [array for name, array in kept.items() if name.endswith("_data")]
    scales = [array for name, array in kept.items() if not name.endswith("_data")]
    decode: Callable[[], Tensor] = module.weight.dequantize  # type: ignore[assignment]
    return Stored.of(decode(), decode, codes=codes, scales=scales)
