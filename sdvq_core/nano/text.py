"""Text as the SDXL pipeline feeds it to the UNet: both encoders' last-but-one states, the second's pooled output.

Dropped prompts are zeros (a missing negative prompt, `force_zeros_for_empty_prompt`) or, less often, the empty text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sdvq_core.nano.models import Size

ZERO_SHARE = 0.08
EMPTY_SHARE = 0.04


@dataclass(frozen=True)
class Conditioning:
    """`states [N, T, C]`, `pooled [N, P]`, `time_ids [N, 6]`."""

    states: Tensor
    pooled: Tensor
    time_ids: Tensor


def condition(encoders: Sequence[CLIPTextModel | CLIPTextModelWithProjection], ids: Tensor, size: Size) -> Conditioning:
    """What the pipeline would compute for token ids `[N, T]`."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([o.hidden_states[-2] for o in outputs], dim=-1)  # [N, T, C]
    side = size.resolution
    time_ids = torch.tensor([[side, side, 0, 0, side, side]], device=ids.device, dtype=torch.float32)
    return Conditioning(states, outputs[1].text_embeds, time_ids.expand(len(ids), 6))


def drop_prompts(ids: Tensor, empty: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids `[N, T]` with some rows emptied, and `keep [N]`: 0 where the embedding is to be zero."""
    dice = torch.rand(len(ids), generator=generator).to(ids.device)
    ids = torch.where((dice < EMPTY_SHARE)[:, None], empty[None], ids)
    return ids, (dice < 1 - ZERO_SHARE).float()


def keep_only(found: Conditioning, keep: Tensor) -> Conditioning:
    """The conditioning with the rows of `keep == 0` set to zero."""
    return Conditioning(found.states * keep[:, None, None], found.pooled * keep[:, None], found.time_ids)
