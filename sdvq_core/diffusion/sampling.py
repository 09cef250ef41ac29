"""Prompt and seed -> latents: the denoising loop of StableDiffusionXLPipeline, one yield per step.

On CPU the result equals the pipeline's bit for bit. The latents and the scheduler's arithmetic stay in float32 and all
noise is drawn on the CPU, so that a seed starts the same image on every device; only the UNet runs in the base's dtype.
N images, C latent channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.diffusion.base_model import BaseModel
from sdvq_core.diffusion.decoding import decode, preview
from sdvq_core.diffusion.text import Conditioning, encode_prompts, prompt_notice
from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.jobs import Sampling
from sdvq_core.nn import PromptCache

__all__ = ["SampleStep", "call_count", "decode", "preview", "prompt_notice", "sample", "sample_batch", "start_noise"]


@dataclass(frozen=True, eq=False)
class SampleStep:
    """After step `step` (1..steps): latents [N, C, h, w], and what the UNet takes the clean latents to be."""

    step: int
    steps: int
    latents: Tensor
    denoised: Tensor


def sample(base: BaseModel, unet: nn.Module, sampling: Sampling) -> Iterator[SampleStep]:
    """Denoise one image with any `unet` that has UNet2DConditionModel's forward; the last step's latents are final."""
    return sample_batch(base, unet, (sampling,))


def sample_batch(base: BaseModel, unet: nn.Module, samplings: Sequence[Sampling]) -> Iterator[SampleStep]:
    """Denoise N images at once, each with its own prompt and seed; steps and guidance are common to all."""
    steps, guidance = _common(samplings)
    generators = [torch.Generator("cpu").manual_seed(sampling.seed) for sampling in samplings]
    noise = _draw(base, generators)
    words = encode_prompts(base, [s.prompt for s in samplings], base.source.resolution, guided=guidance > 1)
    scheduler = _scheduler(base, steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    latents = noise * scheduler.init_noise_sigma
    extra = base.pipe.prepare_extra_step_kwargs(generators, 0.0)
    total, cache = len(scheduler.timesteps), PromptCache(unet)
    for number, time in enumerate(scheduler.timesteps, start=1):
        scaled = scheduler.scale_model_input(latents, time)
        with cache:
            prediction = _predict(unet, scaled.to(base.dtype), time, words, guidance)
        result = scheduler.step(prediction, time, latents, **extra)
        latents = result.prev_sample
        _check(latents, unet, number, total, base.dtype)
        yield SampleStep(number, total, latents, getattr(result, "pred_original_sample", latents))


def call_count(base: BaseModel, steps: int) -> int:
    """How often a sampling of `steps` calls the UNet; some schedulers look twice at a step."""
    return len(_scheduler(base, steps).timesteps)


def start_noise(base: BaseModel, seeds: Sequence[int]) -> Tensor:
    """Standard normal noise [N, C, h, w], float32, row i from seed i alone."""
    return _draw(base, [torch.Generator("cpu").manual_seed(seed) for seed in seeds])


def _scheduler(base: BaseModel, steps: int) -> Any:
    scheduler = type(base.pipe.scheduler).from_config(base.pipe.scheduler.config)
    scheduler.set_timesteps(steps, device=base.device)
    return scheduler


def _draw(base: BaseModel, generators: Sequence[torch.Generator]) -> Tensor:
    cells = base.source.resolution // base.pipe.vae_scale_factor
    shape = (1, base.pipe.unet.config.in_channels, cells, cells)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(base.device)


@torch.no_grad()
def _predict(unet: nn.Module, scaled: Tensor, time: Tensor, words: Conditioning, guidance: float) -> Tensor:
    """The UNet's output for scaled latents [N, C, h, w], with classifier-free guidance; float32."""
    inputs = torch.cat([scaled, scaled]) if words.guided else scaled  # [B, C, h, w]
    added: dict[str, Any] = {"text_embeds": words.pooled, "time_ids": words.sizes}
    answer = unet(inputs, time, encoder_hidden_states=words.states, added_cond_kwargs=added, return_dict=False)
    output: Tensor = answer[0].float()  # [B, C, h, w]
    if not words.guided:
        return output
    empty, prompted = output.chunk(2)  # [N, C, h, w] each
    return empty + guidance * (prompted - empty)


def _common(samplings: Sequence[Sampling]) -> tuple[int, float]:
    """(steps, guidance), which all samplings must share."""
    shared = {(sampling.steps, sampling.guidance) for sampling in samplings}
    if len(shared) != 1:
        raise ConfigError(f"one batch takes images of equal steps and guidance, got {sorted(shared) or 'no image'}")
    return shared.pop()


def _check(latents: Tensor, unet: nn.Module, step: int, steps: int, dtype: torch.dtype) -> None:
    if not torch.isfinite(latents).all():
        range_of_half = ", or overflow in fp16: try --dtype bf16" if dtype == torch.float16 else ""
        raise SdvqError(
            f"the UNet ({type(unet).__name__}) gave NaN or infinity at step {step} of {steps}; "
            f"its weights are damaged, or too coarse for this model: try more bits{range_of_half}"
        )
