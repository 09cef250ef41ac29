"""Bit allocation: which layer gets how many bits, from what each layer's compression does to the model's *output*.

Damage of a choice: mean square error of the UNet's guided output with that one layer compressed and all others
original, on inputs from the original's own trajectories. Damages of different layers are taken to add up; the
assignment with the least sum under a byte budget is an integer program (HiGHS through scipy). The idea is that of HAWQ
and MixDQ for scalar codes (arXiv 1911.03852, 2405.17873).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sdvq_core.distillation import Lessons, guided_error, to_device
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress
from sdvq_core.qtensor import QuantizedTensor

_PAIRS = 32  # of image and step, spread over all steps
_ELEMENTS = 1 << 16  # of latents in one call of the UNet: all pairs of a small model, one of SDXL


def measure_damage(
    original: nn.Module,
    candidates: Mapping[str, Sequence[QuantizedTensor]],
    lessons: Lessons,
    guidance: float,
    pairs: int = _PAIRS,
) -> Iterator[Progress | dict[str, tuple[float, ...]]]:
    """Progress per layer, then each candidate's damage by layer, in the order of the candidates."""
    model = copy.deepcopy(original).eval().requires_grad_(False)
    images, steps = _spread(lessons, pairs)
    size = max(1, _ELEMENTS // lessons.latents[0, 0].numel())
    parts = list(zip(images.split(size), steps.split(size), strict=True))
    found: dict[str, tuple[float, ...]] = {}
    start = time.monotonic()
    for done, (name, choices) in enumerate(candidates.items(), start=1):
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        before = weight.detach().clone()
        errors = []
        for choice in choices:
            weight.copy_(choice.dequantize(weight.dtype))
            total = sum(_error(model, lessons, part, guidance) * len(part[0]) for part in parts)
            errors.append(total / len(images))
        weight.copy_(before)
        found[name] = tuple(errors)
        left = (time.monotonic() - start) / done * (len(candidates) - done)
        yield Progress("allocate", "", done, len(candidates), name, left)
    yield found


@torch.no_grad()
def _error(model: nn.Module, lessons: Lessons, pairs: tuple[Tensor, Tensor], guidance: float) -> float:
    """Mean square error of the guided output of `model`, in whatever precision it has, on (images, steps)."""
    arguments, wanted = lessons.batch(*pairs)
    first = next(model.parameters())
    answer = model(**to_device(arguments, first.device, first.dtype), return_dict=False)[0].float()
    return float(guided_error(answer - wanted.to(first.device), lessons.halves, guidance))


def allocate(nbytes: Mapping[str, Sequence[int]], damage: Mapping[str, Sequence[float]], budget: int) -> dict[str, int]:
    """The choice of every layer, as an index, with the least sum of damages within `budget` bytes in all.

    nbytes and damage: one number per choice, by layer. ConfigError names the least budget there is.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    least = sum(min(sizes) for sizes in nbytes.values())
    if budget < least:
        raise ConfigError(f"the byte budget must be {least} or more for these {len(nbytes)} layers, got {budget}")
    places = [(name, index) for name, sizes in nbytes.items() for index in range(len(sizes))]
    sizes = np.array([nbytes[name][index] for name, index in places], dtype=float)
    costs = np.array([damage[name][index] for name, index in places], dtype=float)
    if not np.isfinite(costs).all():
        raise ConfigError(f"the damage of {places[int(np.argmin(np.isfinite(costs)))][0]} is not a finite number")
    order = {name: row for row, name in enumerate(nbytes)}
    one_each = np.zeros((len(nbytes), len(places)))
    one_each[[order[name] for name, _ in places], range(len(places))] = 1
    scale = max(float(costs.max()), np.finfo(float).tiny)  # HiGHS's tolerances are absolute
    answer = milp(
        costs / scale,
        integrality=np.ones(len(places)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes[None], -np.inf, float(budget))],
        options={"mip_rel_gap": 1e-4},
    )
    if answer.x is None:
        raise ConfigError(f"no assignment was found for {budget} bytes ({answer.message})")
    return {name: index for (name, index), chosen in zip(places, answer.x, strict=True) if chosen > 0.5}


def _spread(lessons: Lessons, pairs: int) -> tuple[Tensor, Tensor]:
    """(images, steps), each [pairs]: every step about equally often, images in turn."""
    numbers = torch.arange(pairs)
    return numbers % len(lessons), numbers * lessons.steps // pairs
