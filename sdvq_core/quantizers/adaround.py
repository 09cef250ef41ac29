"""`adaround`: scalar codes whose rounding, up or down, is learned by reconstruction (AdaRound, arXiv 2004.10568).

Each weight may take one of two neighbouring codes, b or b + 1; a rectified sigmoid of a learned V chooses softly,
``h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)``, and Adam lowers

    tr(E H E^T) + strength * sum(1 - |2 h(V) - 1|^beta),        E = W - ((b + h(V)) step + low)

while beta falls, which drives every h to 0 or 1. The first term is the layer's mean squared output error on the
calibration inputs, exactly: H = E[x x^T] says all there is to know of them, so no activations are kept. BRECQ and
Q-Diffusion reconstruct the output of a block of layers; this is layer by layer, under the whole H.

b is not taken from W itself but from a good rounding, error feedback (`gptq`) refined by coordinate descent: one of
the two codes is the one found there, the other its neighbour on the side to which the error pulls. In a few hundred
iterations that ends far lower than up or down from W. A row keeps its start where learning did not help, so none is
worse than `gptq` or `rtn` under the same damped H. More damping than `gptq` takes: a closer search is sooner too close.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.grouping import to_rows
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import knob, register
from sdvq_core.quantizers.descent import Rounding, descend
from sdvq_core.quantizers.feedback import damped
from sdvq_core.quantizers.gptq import Gptq
from sdvq_core.quantizers.rtn import RoundToNearest
from sdvq_core.records import LayerStats

_ZETA, _GAMMA = 1.1, -0.1  # the stretch of the rectified sigmoid
_BETAS = (20.0, 2.0)  # of the regularizer, from its first iteration to the last
_WARM_UP = 0.2  # share of the iterations without it
_STRENGTH = 1.0  # of the regularizer, per weight; the error is in units of what one step costs in the mean
_FIRST = 0.01  # h of a weight before learning, counted from its code of the start
_ADAM = (0.9, 0.99)
_SWEEPS = 3


@register("adaround", "Scalar, learned rounding (AdaRound)")
@dataclass(frozen=True)
class AdaRound(Gptq):
    """Uniform scalar codes, rounded up or down as learned by reconstructing the layer's output."""

    calibrated = True
    algorithm = 1

    damping: float = knob(0.05, "Damping, share of the mean", low=0.0001, high=1.0)  # least error on other prompts
    iterations: int = knob(200, "Iterations of Adam", low=0, high=10000)
    lr: float = knob(0.1, "Learning rate", low=0.001, high=1.0)

    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        nearest = RoundToNearest.quantize(self, weight, stats)
        if stats is None:
            return nearest
        rows = to_rows(weight.detach().float())  # [O, n]
        moment = damped(stats.second_moment.to(rows), self.damping)
        fed_back = Rounding.of(super().quantize(weight, stats))
        start = descend(rows, Rounding.of(nearest).or_better(fed_back, rows, moment), moment, _SWEEPS)
        learned = descend(rows, learn(rows, start, moment, self.iterations, self.lr), moment, _SWEEPS)
        return start.or_better(learned, rows, moment).stored(nearest)


def learn(rows: Tensor, start: Rounding, moment: Tensor, iterations: int, lr: float) -> Rounding:
    """rows [O, n], H [n, n] -> `start` with each code kept or moved by one, as learned; ranges stay."""
    base = _lower_codes(rows, start, moment)  # [O, n]
    first = torch.where(start.codes > base, 1 - _FIRST, _FIRST)
    logits = -torch.log((_ZETA - _GAMMA) / (first - _GAMMA) - 1)  # V, [O, n]
    cost = (start.step.square() * moment.diagonal()).mean(1, keepdim=True)  # [O, 1]
    unit = start.step / cost.masked_fill(cost == 0, 1)
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for number in range(1, iterations + 1):
        soft = torch.sigmoid(logits)
        share = soft * (_ZETA - _GAMMA) + _GAMMA  # h before it is clipped
        inside = (share > 0) & (share < 1)
        share.clamp_(0, 1)
        error = (base + share) * start.step + start.low - rows
        slope = 2 * (error @ moment) * unit + _STRENGTH * _towards_ends(share, number / iterations)
        slope *= (_ZETA - _GAMMA) * soft * (1 - soft) * inside
        mean.lerp_(slope, 1 - _ADAM[0])
        square.mul_(_ADAM[1]).addcmul_(slope, slope, value=1 - _ADAM[1])
        size = lr / (1 - _ADAM[0] ** number)
        logits.addcdiv_(mean, (square / (1 - _ADAM[1] ** number)).sqrt_().add_(1e-8), value=-size)
    return start.with_codes(base + (torch.sigmoid(logits) >= 0.5))


def _lower_codes(rows: Tensor, start: Rounding, moment: Tensor) -> Tensor:
    """b [O, n]: of each weight's code and its neighbour on the side to which the error pulls, the lower."""
    up = (rows - start.decoded) @ moment > 0
    return torch.where(up, start.codes, start.codes - 1).clamp(0, start.top - 1)


def _towards_ends(share: Tensor, progress: float) -> Tensor:
    """Slope of 1 - |2 h - 1|^beta in h [O, n], at `progress` 0 .. 1 of the iterations; 0 while warming up."""
    if progress <= _WARM_UP:
        return torch.zeros_like(share)
    turn = math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))  # 1 to -1
    beta = _BETAS[1] + (_BETAS[0] - _BETAS[1]) * (1 + turn) / 2
    centred = 2 * share - 1
    return -2 * beta * centred.abs().pow_(beta - 1) * centred.sign()
