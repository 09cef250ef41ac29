"""How far a model is from its teacher on lessons, seen as the sampler sees it.

With guidance g the sampler follows ``u + g (c - u)``, so what matters is the error of that combination: the loss is its
mean square, plus a share of the plain mean square of both halves.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sdvq_core.distillation.lessons import Lessons

_PLAIN = 0.1  # share of the plain error of both halves in the loss


def lesson_loss(model: nn.Module, lessons: Lessons, pairs: tuple[Tensor, Tensor], guidance: float) -> Tensor:
    """The loss of `model` on n pairs (images [n], steps [n])."""
    arguments, wanted = lessons.batch(*pairs)
    device = next(model.parameters()).device
    answer = model(**to_device(arguments, device), return_dict=False)[0]
    error = answer - wanted.to(device)  # [B * n, C, h, w]
    guided = guided_error(error, lessons.halves, guidance)
    return guided if lessons.halves == 1 else guided + _PLAIN * error.square().mean()


def guided_error(error: Tensor, halves: int, guidance: float) -> Tensor:
    """Mean square of what the sampler sees of error [B * n, C, h, w]: u + g (c - u) of the halves u and c, if two."""
    if halves == 1:
        return error.square().mean()
    free, told = error.chunk(2)
    combined: Tensor = free + guidance * (told - free)
    return combined.square().mean()


def to_device(
    arguments: Mapping[str, object], device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, object]:
    """The UNet's arguments on its device, floats in its dtype; timesteps stay as they are."""
    moved: dict[str, object] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            moved[name] = value.to(device) if name == "timestep" else value.to(device, dtype)
        elif isinstance(value, Mapping):
            moved[name] = to_device(value, device, dtype)
        else:
            moved[name] = value
    return moved
