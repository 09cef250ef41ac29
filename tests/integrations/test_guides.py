"""ControlNet and IP-Adapter pipelines take a compressed UNet, and it answers as the same weights in floats do."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from native_cases import apart, latents
from torch import nn

from sdvq_core import SdvqConfig
from sdvq_core.errors import ConfigError
from sdvq_core.nn import QuantizedLayer, quantized_layers

EXACT = 2e-5


@pytest.fixture(scope="module")
def unets(tiny_pipeline_folder: Path):
    """(compressed, the same weights as floats) of the tiny pipeline with random weights."""
    config = SdvqConfig("rvq:bits=4")
    found = UNet2DConditionModel.from_pretrained(tiny_pipeline_folder, subfolder="unet", quantization_config=config)
    return found, copy.deepcopy(found).dequantize()


def randomize(model: nn.Module, scale: float = 0.1) -> None:
    """Weights that are not zero, where a ControlNet starts with zeros."""
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random) * scale


def test_a_controlnet_guides_a_compressed_unet(unets, tiny_pipeline_folder):
    compressed, floats = unets
    controlnet = ControlNetModel.from_unet(floats, conditioning_embedding_out_channels=(16, 32, 96))
    for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        randomize(block)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    base = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_folder, unet=compressed, dtype=torch.float32)
    pipe = StableDiffusionXLControlNetPipeline.from_pipe(base, controlnet=controlnet)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet is compressed
    asked = {"image": picture, "prompt": "a red frog", "height": 32, "width": 32}
    guided, weakly = latents(pipe, **asked), latents(pipe, **asked, controlnet_conditioning_scale=0.1)
    pipe.unet = floats
    assert apart(guided, latents(pipe, **asked)) < EXACT
    assert apart(guided, weakly) > 0.01


def test_a_controlnet_starts_from_a_float_copy(unets):
    compressed = unets[0]
    with pytest.raises(RuntimeError, match="Missing key"):
        ControlNetModel.from_unet(compressed)
    assert ControlNetModel.from_unet(compressed, load_weights_from_unet=False).config.block_out_channels
    copied = ControlNetModel.from_unet(copy.deepcopy(compressed).dequantize())
    assert torch.equal(copied.conv_in.weight, compressed.conv_in.weight)
    assert not any(isinstance(layer, QuantizedLayer) for layer in copied.modules())


def ip_adapter(unet: UNet2DConditionModel, images: int = 16, tokens: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter in the layout of its files."""
    random = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    shapes = {"proj.weight": (tokens * width, images), "proj.bias": (tokens * width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    attention = {}
    crossing = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    for place, module in enumerate(_in_order(unet, crossing)):
        for side in ("to_k_ip", "to_v_ip"):
            key = f"{2 * place + 1}.{side}.weight"
            attention[key] = torch.randn(module.to_q.out_features, width, generator=random) * 0.3
    return {
        "image_proj": {name: torch.randn(shape, generator=random) for name, shape in shapes.items()},
        "ip_adapter": attention,
    }


def _in_order(unet: UNet2DConditionModel, crossing: list[nn.Module]) -> list[nn.Module]:
    """As diffusers counts them: by the names of the attention processors."""
    named = {f"{name}.processor": module for name, module in unet.named_modules()}
    ordered = [named[name] for name in unet.attn_processors if name.endswith("attn2.processor")]
    assert set(map(id, ordered)) == set(map(id, crossing))
    return ordered


def test_an_ip_adapter_shows_a_compressed_unet_an_image(unets, tiny_pipeline_folder, tmp_path):
    results = []
    for unet in map(copy.deepcopy, unets):
        pipe = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_folder, unet=unet, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        before = latents(pipe)
        pipe.load_ip_adapter(ip_adapter(unet), subfolder="", weight_name="", image_encoder_folder=None)
        shown = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(1))
        pipe.set_ip_adapter_scale(0.8)
        results.append(latents(pipe, ip_adapter_image_embeds=[shown]))
        assert apart(results[-1], before) > 0.01
        if next(quantized_layers(unet), None):
            with pytest.raises(ConfigError, match="unload adapters first"):
                unet.save_pretrained(tmp_path)
        pipe.unload_ip_adapter()
        assert apart(latents(pipe), before) < EXACT
    assert apart(*results) < EXACT
