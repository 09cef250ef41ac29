"""A UNet of SDXL's size with random weights, or random codes in their place: for speed and memory, never for quality.

Every tensor is filled from a seed of its own, N(0, 1 / fan_in), norms 1 and biases 0. Codes are random bytes: their
size and the work of decoding them are those of real ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.diffusion.quiet import quiet
from sdvq_core.diffusion.sdxl_config import sdxl_unet_config
from sdvq_core.nn import swap_layer
from sdvq_core.plan import Assignment, CompressionPlan, Rule
from sdvq_core.qtensor import QuantizedTensor, TensorSpec
from sdvq_core.quantizers import Quantizer

KEPT = ("conv_in", "conv_out", "time_embedding.*", "add_embedding.*")
_CELLS = 128


def random_unet(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, config: Mapping[str, Any] | None = None
) -> nn.Module:
    """SDXL's UNet, or that of `config`, allocated on `device` with random weights; ready to be called."""
    unet = skeleton(config).to(dtype).to_empty(device=device)
    for number, (name, value) in enumerate(unet.named_parameters()):
        fill(value.data, name, torch.Generator(device).manual_seed(number))
    return unet.eval().requires_grad_(False)


def skeleton(config: Mapping[str, Any] | None = None) -> nn.Module:
    """The UNet with shapes and no storage (meta device)."""
    with quiet():
        from diffusers import UNet2DConditionModel
    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel.from_config(sdxl_unet_config(_CELLS) if config is None else config)
    return unet


def plan_for(unet: nn.Module, quantizer: Quantizer) -> CompressionPlan:
    """Every Linear and Conv2d but the first and last convolution and the two embeddings: 788 layers of SDXL's UNet."""
    return CompressionPlan.resolve(unet, [Rule("*", quantizer), *(Rule(name, None, optional=True) for name in KEPT)])


def with_random_codes(unet: nn.Module, quantizer: Quantizer) -> nn.Module:
    """`unet`, its weights replaced by random codes as `quantizer` stores them, layer by layer."""
    for name, tensor in random_codes(unet, quantizer, next(unet.parameters()).device):
        swap_layer(unet, name, tensor)
    return unet


def random_codes(unet: nn.Module, quantizer: Quantizer, device: torch.device) -> Iterator[tuple[str, QuantizedTensor]]:
    """(name, random codes on `device`) of every layer of the plan; shared arrays are made once."""
    shared: dict[str, Tensor] = {}
    for number, item in enumerate(plan_for(unet, quantizer).assignments):
        draw = _Draw(item, torch.Generator(device).manual_seed(number))
        tensors = {}
        for name, spec in item.spec.items():
            tensors[name] = shared[spec.shared] if spec.shared in shared else draw(name, spec)
            if spec.shared:
                shared[spec.shared] = tensors[name]
        meta = item.quantizer.layout(item.shape)
        yield item.name, QuantizedTensor(item.quantizer.format, item.shape, tensors, meta)


def call_inputs(
    config: Mapping[str, Any], cells: int, batch: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """What a UNet of `config` is called with: `batch` latents of cells x cells, 77 tokens of text."""
    generator = torch.Generator(device).manual_seed(0)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    return {
        "sample": normal(batch, 4, cells, cells),
        "timestep": torch.tensor(500.0, device=device),
        "encoder_hidden_states": normal(batch, 77, config["cross_attention_dim"]),
        "added_cond_kwargs": {
            "text_embeds": normal(batch, pooled),
            "time_ids": torch.full((batch, 6), 8.0 * cells, device=device, dtype=dtype),
        },
    }


def weight_of(unet: nn.Module, name: str) -> Tensor:
    weight = unet.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def fill(value: Tensor, name: str, generator: torch.Generator) -> None:
    """Random weights in place: N(0, 1 / fan_in), norms 1 and biases 0."""
    if value.ndim > 1:
        value.normal_(0, (value.shape[0] / value.numel()) ** 0.5, generator=generator)
    else:
        value.fill_(1.0 if name.endswith("weight") else 0.0)


class _Draw:
    """Random arrays of one layer, whose weights come out with a variance near 1 / fan_in."""

    def __init__(self, item: Assignment, generator: torch.Generator) -> None:
        self._item, self._generator = item, generator

    def __call__(self, name: str, spec: TensorSpec) -> Tensor:
        empty = torch.empty(spec.shape, dtype=spec.dtype, device=self._generator.device)
        if spec.part == "codes":
            return empty.random_(0, 256, generator=self._generator)
        if spec.part == "codebooks":
            return empty.normal_(0, spec.shape[0] ** -0.5, generator=self._generator)
        return empty.fill_(self._scale(name))

    def _scale(self, name: str) -> float:
        """The scale of a row; an offset is half of an affine code's range below zero."""
        item = self._item
        spread = math.sqrt(item.shape[0] / math.prod(item.shape))
        if item.quantizer.format != "affine":
            return 0.0 if name == "offset" else spread
        top = (1 << int(item.quantizer.layout(item.shape)["bits"])) - 1
        step = spread * math.sqrt(12) / top
        return -step * top / 2 if name == "offset" else step
