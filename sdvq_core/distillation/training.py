"""The training: a student learns its teacher's outputs on the teacher's trajectories; the best state is kept.

With guidance g the sampler follows ``u + g (c - u)``, so what matters is the error of that combination: the loss is its
mean square, plus a share of the plain mean square of both halves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdvq_core.distillation.lessons import Lessons
from sdvq_core.distillation.student import Student
from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.jobs import Progress
from sdvq_core.qtensor import QuantizedTensor

_HELD_OUT = 1 / 8  # of the images: judge the state, never train it
_LEAST_SIZE = 0.01  # of an array, for its learning rate
_PLAIN = 0.1  # share of the plain error of both halves in the loss


@dataclass(frozen=True)
class DistillationSettings:
    """Updates of `batch` pairs of image and step each; lr is in units of each array's own size."""

    updates: int = 400
    batch: int = 16
    lr: float = 1e-3
    warm_up: int = 20
    look_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "look_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Distilled:
    """The best state on held-out images. curve: (update, loss on held-out images) per look, the start included."""

    weights: Mapping[str, QuantizedTensor]
    kept: Mapping[str, Tensor]
    curve: tuple[tuple[int, float], ...]


def distill(
    original: nn.Module,
    weights: Mapping[str, QuantizedTensor],
    lessons: Lessons,
    guidance: float,
    settings: DistillationSettings,
) -> Iterator[Progress | Distilled]:
    """Progress per update, then the student at its best; `original` is not changed."""
    student = Student(original, weights)
    held_out, lessons = lessons.split(max(1, round(_HELD_OUT * len(lessons))))
    if not len(lessons):
        raise ConfigError("distillation needs two images or more, one of them to judge by")
    training = _Training(student, guidance, settings)
    best, curve, kept_loss = (student.weights(), student.kept()), [(0, training.judge(held_out))], math.inf
    kept_loss = curve[0][1]
    start = time.monotonic()
    for update in range(1, settings.updates + 1):
        training.update(lessons, update)
        if update % settings.look_every == 0 or update == settings.updates:
            curve.append((update, training.judge(held_out)))
            if curve[-1][1] < kept_loss:
                best, kept_loss = (student.weights(), student.kept()), curve[-1][1]
        left = (time.monotonic() - start) / update * (settings.updates - update)
        text = f"error on held-out images {kept_loss / curve[0][1]:.3f} of the start's"
        yield Progress("distil", "", update, settings.updates, text, left)
    yield Distilled(*best, tuple(curve))


class _Training:
    """Optimiser, random choices and loss of one student."""

    def __init__(self, student: Student, guidance: float, settings: DistillationSettings) -> None:
        self.model, self.guidance, self.settings = student.model.train(), guidance, settings
        groups = []
        for name, value in student.parameters():
            own = (
                settings.lr if name.endswith(".change") else settings.lr * float(value.detach().square().mean().sqrt())
            )
            groups.append({"params": [value], "lr": max(own, 0.01 * settings.lr), "base": max(own, 0.01 * settings.lr)})
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.generator = torch.Generator().manual_seed(settings.seed)

    def update(self, lessons: Lessons, number: int) -> None:
        """One step of the optimiser on a random batch."""
        size = self.settings.batch
        images = torch.randint(len(lessons), (size,), generator=self.generator)
        steps = torch.randint(lessons.steps, (size,), generator=self.generator)
        loss = self._loss(lessons, images, steps)
        if not bool(torch.isfinite(loss)):
            raise SdvqError(f"distillation diverged at update {number}; use a smaller learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * self._schedule(number)
        self.optimizer.step()

    @torch.no_grad()
    def judge(self, lessons: Lessons) -> float:
        """The loss over all steps of the held-out images."""
        total, size = 0.0, self.settings.batch
        pairs = torch.cartesian_prod(torch.arange(len(lessons)), torch.arange(lessons.steps))
        for part in pairs.split(size):
            total += float(self._loss(lessons, part[:, 0], part[:, 1])) * len(part)
        return total / len(pairs)

    def _schedule(self, number: int) -> float:
        warm = min(1.0, number / max(1, self.settings.warm_up))
        return warm * 0.5 * (1 + math.cos(math.pi * (number - 1) / self.settings.updates))

    def _loss(self, lessons: Lessons, images: Tensor, steps: Tensor) -> Tensor:
        arguments, wanted = lessons.batch(images, steps)
        device = next(self.model.parameters()).device
        answer = self.model(**to_device(arguments, device), return_dict=False)[0]
        error = answer - wanted.to(device)  # [B * n, C, h, w]
        guided = guided_error(error, lessons.halves, self.guidance)
        return guided if lessons.halves == 1 else guided + _PLAIN * error.square().mean()


def guided_error(error: Tensor, halves: int, guidance: float) -> Tensor:
    """Mean square of what the sampler sees of error [B * n, C, h, w]: u + g (c - u) of the halves u and c, if two."""
    if halves == 1:
        return error.square().mean()
    free, told = error.chunk(2)
    combined: Tensor = free + guidance * (told - free)
    return combined.square().mean()


def to_device(arguments: Mapping[str, object], device: torch.device) -> dict[str, object]:
    moved: dict[str, object] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            moved[name] = value.to(device)
        elif isinstance(value, Mapping):
            moved[name] = to_device(value, device)
        else:
            moved[name] = value
    return moved
