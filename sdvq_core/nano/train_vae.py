"""The autoencoder's training: squared and absolute error, a little on gradients, a trace of KL.

For the first two thirds most pictures are crowded (several objects, any size), as flat ground teaches little; then the
pictures are the scenes that the text-to-image model will see.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from sdvq_core.nano.learner import Learner
from sdvq_core.nano.models import Size, make_vae
from sdvq_core.nano.progress import Clock, Journal, to_batch, to_pictures
from sdvq_core.nano.scenes import CELLS, Scene, Thing, heldout_scenes, render, sample_scene
from sdvq_core.nano.sprites import Sprites
from sdvq_core.nano.vocabulary import NanoObject, allowed_colours

KL_WEIGHT = 1e-6
CROWDED_UNTIL = 0.65
LOOK_EVERY = 400


@dataclass(frozen=True)
class VaePlan:
    """How long and how fast."""

    minutes: float
    batch: int = 16
    lr: float = 2e-3
    muon: bool = True
    seed: int = 0
    device: str = "cpu"


def crowded_scene(rng: random.Random, objects: Sequence[NanoObject]) -> Scene:
    """Objects of any size, anywhere on the grid, one over the other; none on a ground it is held out from."""
    while True:
        items = rng.sample(range(len(objects)), rng.randint(2, 4))
        colours = allowed_colours([objects[i].name for i in items], held_out=False)
        if colours:
            break
    things = []
    for item in items:
        cells = rng.choice((6, 7, 8, 8, 10, 12, 15))
        column, row = rng.randint(0, CELLS - cells), rng.randint(0, CELLS - cells)
        things.append(Thing(item, "", cells, column, row, rng.random() < 0.5))
    return Scene(tuple(things), rng.choice(colours))


def reconstruction_loss(picture: Tensor, target: Tensor) -> Tensor:
    """4 MSE + 0.5 L1 + 0.25 L1 of the gradients."""
    error = picture - target
    loss = 4 * error.square().mean() + 0.5 * error.abs().mean()
    for dim in (-1, -2):
        loss = loss + 0.25 * error.diff(dim=dim).abs().mean()
    return loss


def kl_per_latent(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL to the standard normal, averaged over every latent number."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class VaeTrainer:
    """One autoencoder and its pictures."""

    def __init__(self, plan: VaePlan, size: Size, objects: Sequence[NanoObject], sprites: Sprites) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.size, self.objects, self.sprites = plan, size, objects, sprites
        self.rng = random.Random(f"vae {plan.seed}")
        self.vae = make_vae(size).to(plan.device)
        self.learner = Learner(self.vae, plan.lr, muon=plan.muon, decay=0.0)

    def pictures(self, progress: float) -> list[NDArray[np.uint8]]:
        """One batch."""
        crowded = progress < CROWDED_UNTIL
        scenes = [
            crowded_scene(self.rng, self.objects)
            if crowded and self.rng.random() < 0.8
            else sample_scene(self.rng, self.objects)
            for _ in range(self.plan.batch)
        ]
        return [render(s, self.sprites) for s in scenes]

    def step(self, progress: float) -> float:
        """One update -> its loss."""
        target = to_batch(self.pictures(progress)).to(self.plan.device)
        with torch.autocast(target.device.type, torch.bfloat16):
            moments = self.vae.encode(target).latent_dist
            picture = self.vae.decode(moments.sample()).sample
        loss = reconstruction_loss(picture.float(), target)
        loss = loss + KL_WEIGHT * kl_per_latent(moments.mean.float(), moments.logvar.float())
        loss.backward()
        self.learner.update(progress)
        return float(loss.detach())

    def averaged(self) -> AutoencoderKL:
        """A copy with the averaged parameters."""
        vae = make_vae(self.size).to(self.plan.device)
        self.learner.average.copy_to(vae)
        return vae.eval()


def train_vae(plan: VaePlan, size: Size, objects: Sequence[NanoObject], sprites: Sprites, work: Path) -> AutoencoderKL:
    """The averaged autoencoder, with latents of mean 0 and deviation 1."""
    trainer, journal, file = VaeTrainer(plan, size, objects, sprites), Journal(work, "vae"), work / "vae.pt"
    clock = Clock(plan.minutes, trainer.learner.load(file))
    trainer.rng.seed(f"vae {plan.seed} {trainer.learner.steps}")
    losses: list[float] = []
    while clock.progress < 1:
        losses.append(trainer.step(clock.progress))
        if trainer.learner.steps % LOOK_EVERY == 0 or clock.progress >= 1:
            decibels = mean_psnr(*heldout_pictures(objects, sprites, journal, trainer.averaged()))
            entry = {"step": trainer.learner.steps, "loss": float(np.mean(losses)), "psnr": decibels}
            journal.write({**entry, "seconds": clock.spent})
            losses.clear()
            trainer.learner.save(file, clock.spent)
    vae = trainer.averaged()
    normalise_latents(vae, objects, sprites)
    return vae


def heldout_pictures(
    objects: Sequence[NanoObject], sprites: Sprites, journal: Journal, vae: AutoencoderKL
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Originals and reconstructions of the evaluation scenes; the first are saved as a grid."""
    originals = [render(s, sprites) for s in heldout_scenes(objects)]
    copies = reconstruct(vae, originals)
    journal.grid("copies", [*originals[:12], *copies[:12], *originals[-12:], *copies[-12:]], 12)
    return originals, copies


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Encode to the mean, decode."""
    found: list[NDArray[np.uint8]] = []
    for i in range(0, len(pictures), 32):
        batch = to_batch(pictures[i : i + 32]).to(vae.device)
        found += to_pictures(vae.decode(vae.encode(batch).latent_dist.mode()).sample)
    return found


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Decibels between two 8-bit pictures (identical ones count as 60)."""
    error = float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean())
    return float(10 * np.log10(255**2 / max(error, 0.065025)))


def mean_psnr(originals: Sequence[NDArray[np.uint8]], copies: Sequence[NDArray[np.uint8]]) -> float:
    """Mean PSNR of pairs."""
    return float(np.mean([psnr(a, b) for a, b in zip(originals, copies, strict=True)]))


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, objects: Sequence[NanoObject], sprites: Sprites, count: int = 2048) -> None:
    """Fold the latents' mean and deviation into the 1x1 convolutions on both sides of them.

    The SDXL pipeline takes `latents_mean` and `latents_std` only for four channels; so the encoder itself must give
    latents of mean 0 and deviation 1, and the config says `scaling_factor` 1.
    """
    vae.register_to_config(scaling_factor=1.0)
    rng = random.Random("statistics")
    pictures = [render(sample_scene(rng, objects), sprites) for _ in range(count)]
    latents = torch.cat([encode(vae, to_batch(pictures[i : i + 64]).to(vae.device)) for i in range(0, count, 64)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None
    assert after is not None
    assert before.bias is not None
    assert after.bias is not None
    channels = len(mean)
    before.weight[:channels] /= deviation[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / deviation
    before.bias[channels:] -= 2 * deviation.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= deviation[None, :, None, None]


def encode(vae: AutoencoderKL, batch: Tensor) -> Tensor:
    """The latents' means for `batch [N, 3, H, W]`, as the pipeline scales them."""
    means: Tensor = vae.encode(batch).latent_dist.mode().float() * vae.config.scaling_factor
    return means
