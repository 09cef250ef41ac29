"""Prompts as the UNet sees them: diffusers' own encoding, checked, and a word on what the tokenizer cuts off.

N prompts, L tokens, E = width of both text encoders together, P = width of the pooled embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdvq_core.diffusion.base_model import BaseModel
from sdvq_core.diffusion.placement import TEXT
from sdvq_core.diffusion.precision import dtype_name
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.errors import SdvqError

SPECIAL_TOKENS = 2


@dataclass(frozen=True, eq=False)
class Conditioning:
    """states [B, L, E], pooled [B, P], sizes [B, 6]; B = N, or 2 N with guidance, the empty prompts first."""

    states: Tensor
    pooled: Tensor
    sizes: Tensor
    guided: bool


@torch.no_grad()
def encode_prompts(base: BaseModel, prompts: Sequence[str], pixels: int, guided: bool) -> Conditioning:
    """Text and size embeddings of N prompts, as StableDiffusionXLPipeline computes them."""
    with quiet(), base.placement.using(*TEXT):
        states, empty_states, pooled, empty_pooled = base.pipe.encode_prompt(
            list(prompts), device=base.device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
    if guided:
        states = torch.cat([empty_states, states])  # [2 N, L, E]
        pooled = torch.cat([empty_pooled, pooled])  # [2 N, P]
    _check(base, states, pooled)
    size = (pixels, pixels, 0, 0, pixels, pixels)  # original, crop corner, target
    sizes = torch.tensor([size] * len(states), dtype=states.dtype, device=base.device)  # [B, 6]
    return Conditioning(states, pooled, sizes, guided)


def _check(base: BaseModel, states: Tensor, pooled: Tensor) -> None:
    """SdvqError with the name of the text encoder that gave NaN; states [B, L, E], the first encoder's part first."""
    width = base.pipe.text_encoder.config.hidden_size
    parts = dict(zip(TEXT, ((states[..., :width],), (states[..., width:], pooled)), strict=True))
    for name, tensors in parts.items():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            word = dtype_name(base.dtype)
            cure = "use --dtype bf16 or fp32" if base.dtype == torch.float16 else "fetch the model again"
            raise SdvqError(
                f"the text encoder ({name}) of {base.source.name} gave NaN or infinity in {word}; "
                f"its weights are damaged, or beyond the range of {word}: {cure}"
            )


def prompt_notice(base: BaseModel, prompt: str) -> str | None:
    """A sentence naming the words that the tokenizers cut from a long prompt; None when nothing is cut."""
    cuts = [cut for tokenizer in (base.pipe.tokenizer, base.pipe.tokenizer_2) if (cut := _cut(tokenizer, prompt))]
    if not cuts:
        return None
    tokens, rest = min(cuts)
    return f"only the first {tokens} tokens of the prompt count: “{rest}” is ignored"


def _cut(tokenizer: Any, prompt: str) -> tuple[int, str] | None:
    """(tokens that count, the text behind them) where the prompt is too long for `tokenizer`."""
    room = tokenizer.model_max_length - SPECIAL_TOKENS
    with quiet():
        encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    if len(encoded["input_ids"]) <= room:
        return None
    start = encoded["offset_mapping"][room][0]
    return room, prompt[prompt.rfind(" ", 0, start + 1) + 1 :]
