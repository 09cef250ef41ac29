"""Optimisers of nano's training: Muon for matrices and kernels, AdamW for the rest, one learning-rate curve, EMA.

Muon (Jordan 2024) steps along the orthogonalised momentum: five Newton-Schulz iterations per matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix with the singular vectors of `matrix [n, m]` and singular values near one."""
    a, b, c = NS_COEFFICIENTS
    x = matrix.bfloat16() / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    back: Tensor = (x.T if tall else x).to(matrix.dtype)
    return back


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the step's RMS is `lr` times 0.2, as with Adam."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})
        self.pool: Executor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            run = self.pool.map if self.pool else map
            list(run(partial(self._update, group=group), moving))

    @torch.no_grad()
    def _update(self, p: nn.Parameter, group: Mapping[str, Any]) -> None:
        state = self.state[p]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(p)
        grad = p.grad
        assert grad is not None
        velocity = state["velocity"].lerp_(grad, 1 - group["momentum"])
        blend = grad.lerp(velocity, group["momentum"]).flatten(1)
        direction = orthogonalise(blend)
        p.mul_(1 - group["lr"] * group["decay"])
        scale = 0.2 * math.sqrt(max(blend.shape))
        p.add_(direction.view_as(p), alpha=-group["lr"] * scale)


def make_optimisers(model: nn.Module, lr: float, *, muon: bool, decay: float = 0.01) -> list[torch.optim.Optimizer]:
    """Muon for inner matrices and kernels (if asked), AdamW for everything else."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if muon and p.ndim >= 2 and not _is_edge(n)]
    chosen = {id(p) for p in inner}
    wide = [p for _, p in named if id(p) not in chosen and p.ndim >= 2]
    flat = [p for _, p in named if id(p) not in chosen and p.ndim < 2]
    groups = [{"params": wide, "weight_decay": decay}, {"params": flat, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    return [adam, Muon(inner, lr, decay=decay)] if inner else [adam]


def _is_edge(name: str) -> bool:
    return any(word in name for word in ("embed", "conv_in", "conv_out", "quant_conv", "logit_scale", "projection"))


def set_learning_rate(optimisers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """The same rate for every group."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = lr


def rate_at(progress: float, peak: float, warm: float = 0.02, floor: float = 0.01) -> float:
    """Linear warm-up, then a straight decay to `floor` of the peak at progress 1."""
    if progress < warm:
        return peak * (0.05 + 0.95 * progress / warm)
    return peak * max(floor, 1 - (1 - floor) * (progress - warm) / (1 - warm))


class Average:
    """Exponential moving average of a model's parameters (with a ramp, so that early steps are forgotten)."""

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = dict(model.named_parameters())
        names = list(self.shadow)
        torch._foreach_lerp_([self.shadow[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give the averaged parameters to a model of the same shape."""
        for n, p in model.named_parameters():
            p.copy_(self.shadow[n])
