"""A bank of encoded scenes: latents and captions that training draws from while old ones are replaced by fresh ones.

Encoding costs more than rendering, and a picture is worth seeing more than once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from sdvq_core.nano.progress import to_batch
from sdvq_core.nano.scenes import caption, render, sample_scene
from sdvq_core.nano.sprites import Sprites
from sdvq_core.nano.tokens import encode_texts
from sdvq_core.nano.train_vae import encode
from sdvq_core.nano.vocabulary import NanoObject


@dataclass(frozen=True)
class World:
    """Everything scenes are made of."""

    objects: Sequence[NanoObject]
    sprites: Sprites
    tokenizer: CLIPTokenizer


class Bank:
    """`latents [M, C, 16, 16]` in float16 and token ids `[M, T]`, a ring."""

    def __init__(self, world: World, vae: AutoencoderKL, capacity: int, seed: int) -> None:
        self._world, self._vae = world, vae
        self._rng = random.Random(f"bank {seed}")
        self._next = 0
        latents, ids = self._fresh(min(256, capacity))
        self.latents = latents.new_empty((capacity, *latents.shape[1:]))
        self.ids = ids.new_empty((capacity, ids.shape[1]))
        for _ in range(0, capacity, 256):
            self.refresh(256)

    def refresh(self, count: int) -> None:
        """Replace the `count` oldest entries."""
        latents, ids = self._fresh(count)
        rows = (torch.arange(count) + self._next) % len(self.latents)
        self.latents[rows], self.ids[rows] = latents, ids
        self._next = (self._next + count) % len(self.latents)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` random entries: latents in float32, ids."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        rows = rows.to(self.latents.device)
        return self.latents[rows].float(), self.ids[rows]

    @torch.no_grad()
    def _fresh(self, count: int) -> tuple[Tensor, Tensor]:
        world = self._world
        scenes = [sample_scene(self._rng, world.objects) for _ in range(count)]
        batch = to_batch([render(s, world.sprites) for s in scenes]).to(self._vae.device)
        texts = [caption(s, world.objects, self._rng) for s in scenes]
        with torch.autocast(batch.device.type, torch.bfloat16):
            parts = [encode(self._vae, part) for part in batch.split(64)]
        return torch.cat(parts).half(), encode_texts(world.tokenizer, texts).to(batch.device)
