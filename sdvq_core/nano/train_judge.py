"""The judge's training: a small CLIP on augmented renders, never on generated pictures.

Three losses through one text tower: which object among all, which ground among twelve, which caption of the batch.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from sdvq_core.nano.bank import World
from sdvq_core.nano.learner import Learner
from sdvq_core.nano.models import Size, make_judge
from sdvq_core.nano.progress import Clock, Journal, to_batch
from sdvq_core.nano.scenes import Scene, caption, colour_index, heldout_scenes, render, sample_scene
from sdvq_core.nano.tokens import encode_texts
from sdvq_core.nano.vocabulary import COLOUR_NAMES, NanoObject

LOOK_EVERY = 100
PAIR_SHARE = 0.3  # pairs are harder to judge than to paint


@dataclass(frozen=True)
class JudgePlan:
    """How long and how fast."""

    minutes: float
    batch: int = 64
    lr: float = 2e-3
    muon: bool = True
    seed: int = 0
    device: str = "cpu"


def object_texts(objects: Sequence[NanoObject]) -> list[str]:
    """One text per object."""
    return [f"a {o.name}" for o in objects]


def colour_texts() -> list[str]:
    """One text per ground."""
    return [f"on a {c} background" for c in COLOUR_NAMES]


def augment(picture: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Soft, noisy, compressed, off-colour: what a generator's picture may be, with the same meaning."""
    image = Image.fromarray(picture)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    if rng.random() < 0.2:
        small = rng.randint(image.width // 2, image.width)
        image = image.resize((small, small), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BICUBIC)
    if rng.random() < 0.2:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(20, 85))
        image = Image.open(buffer)
    pixels = np.asarray(image, np.float32)
    if rng.random() < 0.5:
        tint = [rng.uniform(-12, 12) for _ in range(3)]
        pixels = pixels * rng.uniform(0.88, 1.12) + np.array(tint, np.float32)
    if rng.random() < 0.4:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(pixels.shape, np.float32)
        pixels = pixels + rng.uniform(2, 16) * noise
    return np.clip(pixels, 0, 255).astype(np.uint8)


def directions(model: CLIPModel, ids: Tensor) -> Tensor:
    """Unit text features `[N, D]`."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return functional.normalize(model.text_projection(pooled).float(), dim=-1)


def looks(model: CLIPModel, pictures: Tensor) -> Tensor:
    """Unit image features `[N, D]` of pictures in -1..1."""
    pooled = model.vision_model(pixel_values=pictures).pooler_output
    return functional.normalize(model.visual_projection(pooled).float(), dim=-1)


class JudgeTrainer:
    """One judge and its pictures."""

    def __init__(self, plan: JudgePlan, size: Size, world: World) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.size, self.world = plan, size, world
        self.rng = random.Random(f"judge {plan.seed}")
        self.model = make_judge(size, world.tokenizer).to(plan.device)
        self.learner = Learner(self.model, plan.lr, muon=plan.muon, average=0.998)
        self.objects = encode_texts(world.tokenizer, object_texts(world.objects)).to(plan.device)
        self.colours = encode_texts(world.tokenizer, colour_texts()).to(plan.device)

    def loss(self, scenes: Sequence[Scene]) -> Tensor:
        """The sum of the three losses."""
        world, device = self.world, self.plan.device
        batch = to_batch([augment(render(s, world.sprites), self.rng) for s in scenes]).to(device)
        captions = [caption(s, world.objects, self.rng) for s in scenes]
        ids = torch.cat([self.objects, self.colours, encode_texts(world.tokenizer, captions).to(device)])
        with torch.autocast(batch.device.type, torch.bfloat16):
            image, text = looks(self.model, batch), directions(self.model, ids)
        logits = self.model.logit_scale.exp().clamp(max=100) * (image.float() @ text.float().T)
        known = len(self.objects)
        by_object, by_colour, by_caption = logits.split([known, len(self.colours), len(scenes)], dim=1)
        targets = torch.zeros(len(scenes), known, device=device)
        for row, scene in enumerate(scenes):
            for thing in scene.things:
                targets[row, thing.item] = 1 / len(scene.things)
        own = torch.arange(len(scenes), device=device)
        grounds = torch.tensor([colour_index(s) for s in scenes], device=device)
        loss = functional.cross_entropy(by_object, targets, label_smoothing=0.02)
        loss = loss + 0.5 * functional.cross_entropy(by_colour, grounds)
        both = functional.cross_entropy(by_caption, own) + functional.cross_entropy(by_caption.T, own)
        return loss + 0.25 * both

    def step(self, progress: float) -> float:
        """One update -> its loss."""
        scenes = [sample_scene(self.rng, self.world.objects, pair_share=PAIR_SHARE) for _ in range(self.plan.batch)]
        loss = self.loss(scenes)
        loss.backward()
        self.learner.update(progress)
        return float(loss.detach())

    def averaged(self) -> CLIPModel:
        """A copy with the averaged parameters."""
        model = make_judge(self.size, self.world.tokenizer).to(self.plan.device)
        self.learner.average.copy_to(model)
        return model.eval()


def train_judge(plan: JudgePlan, size: Size, world: World, work: Path) -> CLIPModel:
    """The averaged judge."""
    trainer, journal, file = JudgeTrainer(plan, size, world), Journal(work, "judge"), work / "judge.pt"
    clock = Clock(plan.minutes, trainer.learner.load(file))
    trainer.rng.seed(f"judge {plan.seed} {trainer.learner.steps}")
    losses: list[float] = []
    while clock.progress < 1:
        losses.append(trainer.step(clock.progress))
        if trainer.learner.steps % LOOK_EVERY == 0 or clock.progress >= 1:
            shares = score_on(trainer.averaged(), heldout_scenes(world.objects), world)
            entry = {"step": trainer.learner.steps, "loss": float(np.mean(losses)), **shares}
            journal.write({**entry, "seconds": clock.spent})
            losses.clear()
            trainer.learner.save(file, clock.spent)
    return trainer.averaged()


def score_on(judge: CLIPModel, scenes: Sequence[Scene], world: World) -> dict[str, float]:
    """How often the judge is right on real renders of `scenes`."""
    return score(judge, [render(s, world.sprites) for s in scenes], scenes, world)


@torch.no_grad()
def score(
    judge: CLIPModel, pictures: Sequence[NDArray[np.uint8]], scenes: Sequence[Scene], world: World
) -> dict[str, float]:
    """Shares of right objects (single scenes: the best match; pairs: both among the best two) and right grounds."""
    device = judge.device
    objects = directions(judge, encode_texts(world.tokenizer, object_texts(world.objects)).to(device))
    colours = directions(judge, encode_texts(world.tokenizer, colour_texts()).to(device))
    image = torch.cat([looks(judge, to_batch(pictures[i : i + 64]).to(device)) for i in range(0, len(pictures), 64)])
    ranked = (image @ objects.T).argsort(1, descending=True).cpu()
    ground = (image @ colours.T).argmax(1).cpu()
    single: list[bool] = []
    pairs: list[bool] = []
    for row, scene in enumerate(scenes):
        wanted = {t.item for t in scene.things}
        right = wanted == set(ranked[row, : len(wanted)].tolist())
        (single if len(wanted) == 1 else pairs).append(right)
    right_ground = [int(ground[i]) == colour_index(s) for i, s in enumerate(scenes)]
    return {"object": _share(single), "pair": _share(pairs), "colour": _share(right_ground)}


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")
