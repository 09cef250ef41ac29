"""The text-to-image training: velocity targets on encoded scenes, min-SNR weights, prompts dropped now and then.

v = sqrt(a) noise - sqrt(1 - a) x0 with a = alphas_cumprod; the loss of a sample is weighted by min(SNR, 5) / (SNR + 1)
(Hang et al. 2023). Text encoders and UNet are trained together, from nothing.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sdvq_core.nano.bank import Bank, World
from sdvq_core.nano.learner import Learner
from sdvq_core.nano.models import Size, make_scheduler, make_text_encoders, make_unet
from sdvq_core.nano.optim import Muon
from sdvq_core.nano.progress import Clock, Journal
from sdvq_core.nano.text import condition, drop_prompts, keep_only
from sdvq_core.nano.tokens import encode_texts

logger = logging.getLogger(__name__)
SNR_LIMIT = 5.0


@dataclass(frozen=True)
class UnetPlan:
    """How long, how fast, and how often to look."""

    minutes: float
    batch: int = 64
    lr: float = 2e-3
    muon: bool = True
    seed: int = 0
    device: str = "cpu"
    bank: int = 16_384
    fresh_per_step: int = 16
    average_decay: float = 0.999
    log_every: int = 50
    save_minutes: float = 4.0
    lanes: int = 1  # threads that each take a part of the batch: on a busy CPU better than threads inside operations


class TextToImage(nn.Module):
    """The parts that are trained together."""

    def __init__(self, size: Size, world: World) -> None:
        super().__init__()
        self.unet = make_unet(size)
        self.text_encoder, self.text_encoder_2 = make_text_encoders(size, world.tokenizer)

    def forward(self, noisy: Tensor, times: Tensor, ids: Tensor, keep: Tensor, size: Size) -> Tensor:
        """The predicted velocity `[N, C, 16, 16]`."""
        text = keep_only(condition((self.text_encoder, self.text_encoder_2), ids, size), keep)
        added = {"text_embeds": text.pooled, "time_ids": text.time_ids}
        found: Tensor = self.unet(noisy, times, text.states, added_cond_kwargs=added).sample
        return found


def sharing(model: TextToImage) -> TextToImage:
    """A second model with the same parameters in memory and gradients of its own."""
    twin = copy.deepcopy(model)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.data = own.data
    return twin


class UnetTrainer:
    """One model, its lanes, its noise."""

    def __init__(self, plan: UnetPlan, size: Size, world: World) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.size, self.world = plan, size, world
        self.model = TextToImage(size, world).to(plan.device)
        self.learner = Learner(self.model, plan.lr, muon=plan.muon, average=plan.average_decay)
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.alphas = make_scheduler().alphas_cumprod.to(plan.device)
        self.empty = encode_texts(world.tokenizer, [""])[0].to(plan.device)
        self.pool = ThreadPoolExecutor(plan.lanes)
        self.lanes = [self.model, *(sharing(self.model) for _ in range(plan.lanes - 1))]
        for optimiser in self.learner.optimisers:
            if isinstance(optimiser, Muon) and plan.lanes > 1:
                optimiser.pool = self.pool

    def noised(self, latents: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Everything one batch's loss needs: noisy latents, times, ids, keep, target, weight."""
        count, device = len(latents), latents.device
        spread = (torch.arange(count) + torch.rand(count, generator=self.generator)) / count  # stratified
        times = (spread * len(self.alphas)).long()[torch.randperm(count, generator=self.generator)].to(device)
        noise = torch.randn(latents.shape, generator=self.generator).to(device)
        ids, keep = drop_prompts(ids, self.empty, self.generator)
        signal = self.alphas[times].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        snr = (signal / (1 - signal)).flatten()
        return noisy, times, ids, keep, target, snr.clamp(max=SNR_LIMIT) / (snr + 1)

    def backward(self, model: TextToImage, part: tuple[Tensor, ...]) -> float:
        """The weighted velocity error of one lane's part; its gradients are left in `model`."""
        noisy, times, ids, keep, target, weight = part
        with torch.autocast(noisy.device.type, torch.bfloat16):
            found = model(noisy, times, ids, keep, self.size)
        loss = (weight * (found.float() - target).square().flatten(1).mean(1)).mean() / len(self.lanes)
        loss.backward()
        return float(loss.detach())

    def gather(self) -> None:
        """Add the lanes' gradients to the model's."""
        for lane in self.lanes[1:]:
            for mine, other in zip(self.model.parameters(), lane.parameters(), strict=True):
                if mine.grad is not None and other.grad is not None:
                    mine.grad += other.grad
                other.grad = None

    def step(self, bank: Bank, progress: float) -> float:
        """One update -> its loss."""
        bank.refresh(self.plan.fresh_per_step)
        batch = self.noised(*bank.draw(self.plan.batch, self.generator))
        parts = list(zip(*(x.chunk(len(self.lanes)) for x in batch), strict=True))
        loss = sum(self.pool.map(self.backward, self.lanes, parts))
        self.gather()
        self.learner.update(progress)
        return loss

    def averaged(self) -> TextToImage:
        """A copy with the averaged parameters."""
        model = TextToImage(self.size, self.world).to(self.plan.device)
        self.learner.average.copy_to(model)
        return model.eval()


def train_unet(
    plan: UnetPlan, size: Size, world: World, vae: AutoencoderKL, work: Path, look: Callable[[TextToImage, int], None]
) -> TextToImage:
    """The averaged model; `look(model, step)` is called at every checkpoint."""
    trainer, journal, file = UnetTrainer(plan, size, world), Journal(work, "unet"), work / "unet.pt"
    learner = trainer.learner
    clock = Clock(plan.minutes, learner.load(file))
    trainer.generator.manual_seed(plan.seed + learner.steps)
    bank = Bank(world, vae, plan.bank, plan.seed + learner.steps)
    logger.info("bank of %d scenes after %.0f s", plan.bank, clock.spent)
    losses: list[float] = []
    saved = clock.spent
    while clock.progress < 1:
        losses.append(trainer.step(bank, clock.progress))
        if learner.steps % plan.log_every == 0:
            entry = {"step": learner.steps, "loss": float(np.mean(losses)), "images": learner.steps * plan.batch}
            journal.write({**entry, "seconds": clock.spent})
            losses.clear()
        if clock.spent - saved > 60 * plan.save_minutes or clock.progress >= 1:
            learner.save(file, clock.spent)
            look(trainer.averaged(), learner.steps)
            saved = clock.spent
    return trainer.averaged()
