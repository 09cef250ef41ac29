"""`lib.gguf`: GGUF block types, written by the gguf package and read by diffusers (https://pypi.org/project/gguf).

Blocks of 32 weights of a row, each with a float16 scale (and minimum) before its codes; rows that are no multiple of
32 cannot be stored. The package writes Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0; it can read the K types (Q4_K …) but not
write them, so they are not offered. `own` writes a .gguf file, every matrix quantized and all else in F16 as other
tools do (the rows of a 3 x 3 convolution hold three weights), and loads it by diffusers' `from_single_file`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.errors import ConfigError
from sdvq_core.knobs import Value, knob
from sdvq_core.peers.base import Layer, Peer, Stored, as_matrix, register

TYPES = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}  # bits of a code


@register("gguf", "GGUF")
@dataclass(frozen=True)
class Gguf(Peer):
    """GGUF's block types as the gguf package writes and diffusers reads them; convolutions as matrices."""

    package = "gguf"
    bit_widths = (4, 5, 8)

    type: str = knob("Q4_0", "Type", choices=tuple(TYPES))

    @classmethod
    def from_bits(cls, bits: float, given: Mapping[str, Value]) -> dict[str, Value]:
        chosen = str(given.get("type", f"Q{bits:g}_0"))
        if TYPES.get(chosen) != bits:
            raise ConfigError(f"{cls.name}.bits must be one of (4, 5, 8) and suit the type, got {bits:g}")
        return {"type": chosen}

    @property
    def nominal_bits(self) -> float:
        return float(TYPES[self.type])

    @property
    def method(self) -> str:
        return f"{self.label} {self.type}"

    def quantize(self, layer: Layer) -> Stored:
        from diffusers.quantizers.gguf.utils import GGUFParameter

        blocks = torch.from_numpy(self._encode(as_matrix(layer)))
        return self._read(GGUFParameter(blocks, quant_type=self._type), layer.weight.shape)

    def own(self, unet: nn.Module) -> Iterator[tuple[str, Stored | str]]:
        from diffusers import GGUFQuantizationConfig
        from diffusers.quantizers.gguf.utils import GGUFLinear

        with TemporaryDirectory() as folder:
            unet.save_config(folder)  # type: ignore[operator]
            self._write(unet, Path(folder) / "unet.gguf")
            made = type(unet).from_single_file(  # type: ignore[attr-defined]
                f"{folder}/unet.gguf",
                config=folder,
                quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float16),
                dtype=torch.float16,
            )
            for name, module in made.named_modules():
                if isinstance(module, GGUFLinear):
                    yield name, self._read(module.weight, (module.out_features, module.in_features))

    @property
    def _type(self) -> Any:
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType[self.type]

    def _encode(self, matrix: Tensor) -> Any:
        from gguf import GGML_QUANT_SIZES
        from gguf.quants import quantize

        block = GGML_QUANT_SIZES[self._type][0]
        if matrix.shape[1] % block:
            raise ValueError(f"rows of {matrix.shape[1]} weights are no multiple of {block}")
        return quantize(matrix.float().cpu().numpy(), self._type)

    def _read(self, parameter: Any, shape: tuple[int, ...]) -> Stored:
        """A block of b bytes holds 32 codes at its end and what scales them before."""
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
        from gguf import GGML_QUANT_SIZES

        weights, nbytes = GGML_QUANT_SIZES[self._type]
        blocks = parameter.as_tensor().reshape(-1, nbytes)
        codes = weights * TYPES[self.type] // 8
        weight = dequantize_gguf_tensor(parameter).reshape(shape)
        again = partial(dequantize_gguf_tensor, parameter)
        return Stored.of(weight, again, codes=[blocks[:, -codes:]], scales=[blocks[:, :-codes]])

    def _write(self, unet: nn.Module, path: Path) -> None:
        """The UNet as a .gguf file: weights of Linear layers in blocks where they fill them, all else in F16."""
        from gguf import GGML_QUANT_SIZES, GGUFWriter

        block = GGML_QUANT_SIZES[self._type][0]
        wanted = {
            f"{name}.weight"
            for name, module in unet.named_modules()
            if isinstance(module, nn.Linear) and module.in_features % block == 0
        }
        writer = GGUFWriter(path, "sdxl")
        for name, value in unet.state_dict().items():
            if name in wanted:
                writer.add_tensor(name, self._encode(value), raw_dtype=self._type)
            else:
                writer.add_tensor(name, value.half().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
