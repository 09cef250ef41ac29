"""The training: a student learns its teacher's outputs on recorded trajectories; the best state is kept.

Held-out images judge the state at every look; a run that was killed goes on from its last look, to the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sdvq_core.distillation.lessons import Lessons
from sdvq_core.distillation.loss import lesson_loss
from sdvq_core.distillation.settings import DistillationSettings
from sdvq_core.distillation.student import Student
from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.jobs import Progress
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import Curve

TRAINING = 1  # counts changes of the training that change numbers
_HELD_OUT = 1 / 8  # of the images: judge the state, never train it
_LEAST_SIZE = 0.01  # of an array, for its learning rate


@dataclass(frozen=True, eq=False)
class Distilled:
    """The best state on held-out images. curve: (update, loss on held-out images) per look, the start included."""

    weights: Mapping[str, QuantizedTensor]
    kept: Mapping[str, Tensor]
    curve: Curve


class Checkpoint(Protocol):
    """Where a state of training is kept."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None: ...

    def keep_state(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None: ...


def distill(
    original: nn.Module,
    weights: Mapping[str, QuantizedTensor],
    lessons: Lessons,
    guidance: float,
    settings: DistillationSettings,
    checkpoint: Checkpoint | None = None,
) -> Iterator[Progress | Distilled]:
    """Progress per update, then the student at its best; `original` is not changed.

    checkpoint: is given the state at every look, and asked for one at the start.
    """
    student = Student(original, weights)
    held_out, lessons = lessons.split(max(1, round(_HELD_OUT * len(lessons))))
    if not len(lessons):
        raise ConfigError("distillation needs two images or more, one of them to judge by")
    training = _Training(student, guidance, settings)
    earlier = checkpoint.state() if checkpoint is not None else None
    if earlier is None:
        training.look(0, held_out)
    else:
        training.restore(*earlier)
    start, first = time.monotonic(), training.done
    while training.done < settings.updates and not training.stalled:
        training.update(lessons, training.done + 1)
        if training.done % settings.look_every == 0 or training.done == settings.updates:
            training.look(training.done, held_out)
            if checkpoint is not None:
                checkpoint.keep_state(*training.state())
        left = (time.monotonic() - start) / (training.done - first) * (settings.updates - training.done)
        text = f"error on held-out images {training.least / training.curve[0][1]:.3f} of the start's"
        yield Progress("distil", "", training.done, settings.updates, text, left)
    student.load(training.best)
    yield Distilled(student.weights(), student.kept(), tuple(training.curve))


@dataclass
class _Training:
    """Optimiser, random choices, looks and best state of one student."""

    student: Student
    guidance: float
    settings: DistillationSettings
    done: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.student.model.train()
        groups = [
            {"params": [value], "lr": rate, "base": rate}
            for name, value in self.student.parameters()
            for rate in [self.settings.lr * (1.0 if name.endswith(".change") else max(_LEAST_SIZE, _size(value)))]
        ]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.generator = torch.Generator().manual_seed(self.settings.seed)

    @property
    def least(self) -> float:
        return min(loss for _, loss in self.curve)

    @property
    def stalled(self) -> bool:
        """Whether the last `patience` looks brought no new best."""
        losses = [loss for _, loss in self.curve]
        return len(losses) - 1 - losses.index(min(losses)) >= self.settings.patience

    def update(self, lessons: Lessons, number: int) -> None:
        """One step of the optimiser on a random batch."""
        size = self.settings.batch
        images = torch.randint(len(lessons), (size,), generator=self.generator)
        steps = torch.randint(lessons.steps, (size,), generator=self.generator)
        loss = lesson_loss(self.model, lessons, (images, steps), self.guidance)
        if not bool(torch.isfinite(loss)):
            raise SdvqError(f"distillation diverged at update {number}; use a smaller learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * self._schedule(number)
        self.optimizer.step()
        self.done = number

    def look(self, number: int, held_out: Lessons) -> None:
        """Judge the state on held-out images; keep it if it is the best so far."""
        loss = self._judge(held_out)
        if not self.curve or loss < self.least:
            self.best = {name: value.detach().clone() for name, value in self.student.parameters()}
        self.curve.append((number, loss))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the rest of the training depends on."""
        tensors = {f"best.{name}": value for name, value in self.best.items()}
        tensors["generator"] = self.generator.get_state()
        for name, value in self.student.parameters():
            tensors[f"now.{name}"] = value
            for key, moment in self.optimizer.state[value].items():
                tensors[f"{key}.{name}"] = torch.as_tensor(moment)
        return tensors, {"done": self.done, "curve": self.curve}

    def restore(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Back to what `state` gave."""
        self.done, self.curve = about["done"], [(int(number), float(loss)) for number, loss in about["curve"]]
        self.best = {name: tensors[f"best.{name}"] for name, _ in self.student.parameters()}
        self.student.load({name: tensors[f"now.{name}"] for name, _ in self.student.parameters()})
        self.generator.set_state(tensors["generator"])
        for name, value in self.student.parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{key}.{name}" in tensors:
                    moment = tensors[f"{key}.{name}"]
                    self.optimizer.state[value][key] = moment if key == "step" else moment.to(value.device)

    @torch.no_grad()
    def _judge(self, lessons: Lessons) -> float:
        """The loss over all steps of the held-out images."""
        total, size = 0.0, self.settings.batch
        pairs = torch.cartesian_prod(torch.arange(len(lessons)), torch.arange(lessons.steps))
        for part in pairs.split(size):
            total += float(lesson_loss(self.model, lessons, (part[:, 0], part[:, 1]), self.guidance)) * len(part)
        return total / len(pairs)

    def _schedule(self, number: int) -> float:
        warm = min(1.0, number / max(1, self.settings.warm_up))
        return warm * 0.5 * (1 + math.cos(math.pi * (number - 1) / self.settings.updates))


def _size(value: Tensor) -> float:
    return float(value.detach().square().mean().sqrt())
