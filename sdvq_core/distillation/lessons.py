"""What the teacher does: inputs and outputs of the original UNet at every step of its own sampling trajectories.

N images of S steps; B = 2 halves with guidance (unconditional first), 1 without. C latent channels of h x w, text
states of T tokens and D numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.calibration import Trajectory
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress


@dataclass(frozen=True, eq=False)
class Lessons:
    """Trajectories of one teacher. All on the CPU, float32.

    latents [N, S, C, h, w] (scaled, as the UNet takes them), times [S], outputs [N, S, B, C, h, w],
    states [N, B, T, D], added: the added conditions by name, [N, B, ...].
    """

    latents: Tensor
    times: Tensor
    outputs: Tensor
    states: Tensor
    added: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def steps(self) -> int:
        return self.latents.shape[1]

    @property
    def halves(self) -> int:
        return self.outputs.shape[2]

    def split(self, first: int) -> tuple[Lessons, Lessons]:
        """The first images, and the others."""
        return self._take(slice(None, first)), self._take(slice(first, None))

    def join(self, other: Lessons) -> Lessons:
        """The images of both in turn; equally many, of equal steps."""
        if self.latents.shape != other.latents.shape:
            raise ConfigError(f"lessons to join must be alike, got {self.latents.shape} and {other.latents.shape}")

        def mixed(one: Tensor, two: Tensor) -> Tensor:
            return torch.stack([one, two], 1).flatten(0, 1)

        added = {name: mixed(value, other.added[name]) for name, value in self.added.items()}
        latents, outputs = mixed(self.latents, other.latents), mixed(self.outputs, other.outputs)
        return Lessons(latents, self.times, outputs, mixed(self.states, other.states), added)

    def _take(self, part: slice) -> Lessons:
        added = {name: value[part] for name, value in self.added.items()}
        return Lessons(self.latents[part], self.times, self.outputs[part], self.states[part], added)

    def batch(self, images: Tensor, steps: Tensor) -> tuple[dict[str, Any], Tensor]:
        """(arguments of the UNet, its output [B * n, C, h, w]) for n pairs of image and step; halves outermost."""
        latents, times = self.latents[images, steps], self.times[steps]
        arguments = {
            "sample": torch.cat([latents] * self.halves),
            "timestep": torch.cat([times] * self.halves),
            "encoder_hidden_states": self.states[images].transpose(0, 1).flatten(0, 1),
            "added_cond_kwargs": {
                name: value[images].transpose(0, 1).flatten(0, 1) for name, value in self.added.items()
            },
        }
        return arguments, self.outputs[images, steps].transpose(0, 1).flatten(0, 1)


@dataclass
class _Call:
    latents: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    states: Tensor | None = None
    added: dict[str, Tensor] = field(default_factory=dict)


def record_lessons(
    teacher: nn.Module, trajectories: Sequence[Trajectory], halves: int, student: nn.Module | None = None
) -> Iterator[Progress | Lessons]:
    """Progress per call, then what `teacher` did; `halves` is 2 where the sampling is guided, else 1.

    student: the model whose sampling `trajectories` run, where that is not the teacher: the lessons are then what the
    teacher would have answered to the student's inputs.
    """
    if not trajectories:
        raise ConfigError("distillation needs at least one trajectory of the original model")
    parts: list[Lessons] = []
    total = sum(trajectory.steps for trajectory in trajectories)
    done = 0
    for trajectory in trajectories:
        call = _Call()
        other = None if student is None else teacher
        hook = (student or teacher).register_forward_hook(_listener(call, halves, other), with_kwargs=True)
        try:
            for _ in trajectory.run():
                done += 1
                whose = "original" if student is None else "compressed"
                yield Progress("distil", "", done, total, f"sampling the {whose} model")
        finally:
            hook.remove()
        parts.append(_lessons(call))
    first = parts[0]
    yield Lessons(
        torch.cat([part.latents for part in parts]),
        first.times,
        torch.cat([part.outputs for part in parts]),
        torch.cat([part.states for part in parts]),
        {name: torch.cat([part.added[name] for part in parts]) for name in first.added},
    )


def _listener(call: _Call, halves: int, teacher: nn.Module | None) -> Any:
    def listen(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], answer: Any) -> None:
        if teacher is not None:
            answer = teacher(*arguments, **keywords)
        latents, time = arguments[0], arguments[1]
        call.latents.append(_kept(latents[: len(latents) // halves]))
        call.times.append(torch.as_tensor(time).detach().reshape(()).float().cpu())
        call.outputs.append(_by_image(answer[0], halves))
        call.states = _by_image(keywords["encoder_hidden_states"], halves)
        call.added = {name: _by_image(value, halves) for name, value in keywords["added_cond_kwargs"].items()}

    return listen


def _lessons(call: _Call) -> Lessons:
    assert call.states is not None
    return Lessons(
        torch.stack(call.latents, 1), torch.stack(call.times), torch.stack(call.outputs, 1), call.states, call.added
    )


def _kept(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone()


def _by_image(value: Tensor, halves: int) -> Tensor:
    """[B * N, ...] -> [N, B, ...]."""
    found: Tensor = _kept(value).unflatten(0, (halves, -1)).transpose(0, 1)
    return found
