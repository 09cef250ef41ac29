"""What the tests of the integrations share: the bundled pipeline, fixed questions to it, and how far answers differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NANO = Path(__file__).resolve().parents[2] / "assets" / "nano"
WORD = "rvq:bits=3"
PROMPT = "a red cat on a blue background"


def make_pipe(unet: Any, **options: Any) -> Any:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(NANO, unet=unet, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Callable[..., Any], **options: Any) -> torch.Tensor:
    """Latents of two steps from fixed noise."""
    noise = torch.Generator("cpu").manual_seed(0)
    asked = {"prompt": PROMPT, "num_inference_steps": 2, "output_type": "latent", "generator": noise, **options}
    return pipe(**asked).images


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, as a share of the largest number."""
    return float(((one - other).abs().max() / other.abs().max()).detach())


def answer(unet: Any) -> torch.Tensor:
    """The UNet's answer to fixed inputs, with gradients where they are asked for."""
    config, noise = unet.config, torch.Generator().manual_seed(1)
    width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    text = {"text_embeds": torch.randn(1, width, generator=noise), "time_ids": torch.full((1, 6), 32.0)}
    sample = torch.randn(1, config.in_channels, 16, 16, generator=noise)
    states = torch.randn(1, 8, config.cross_attention_dim, generator=noise)
    given = [tensor.to(unet.dtype) for tensor in (sample, states, *text.values())]
    return unet(given[0], 500, given[1], added_cond_kwargs=dict(zip(text, given[2:], strict=True)))[0]
