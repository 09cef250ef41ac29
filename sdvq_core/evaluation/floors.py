"""The noise floors: what changes when nothing is compressed.

Another seed is the most that an arm could differ and still draw its prompt. The other precision is the least that is
worth discussing: where the base computes in half precision (CUDA), a copy in float32. Where it computes in float32
(CPU), a copy with float16 weights whose every layer rounds its output to float16, with sums in float32 as tensor cores
have them: true float16 took twenty times longer on a CPU, at a latent error of 2.98e-6 against 2.99e-6 this way (nano,
two prompts, four steps).
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.arms import Arm
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.engine import Engine
from sdvq_core.evaluation.samples import Subject

OTHER_SEED = 1_000_003  # added to every seed
SEED_LABEL = "another seed"
LABELS = {torch.float32: "fp16 rounding of every layer"}
HALVED = "fp32 arithmetic"  # of what computes in half precision


def other_precision(engine: Engine, model: str, arm: Arm, dtype: torch.dtype) -> Subject:
    """`arm`, which computes in `dtype`, in the other precision."""
    label = LABELS.get(dtype, HALVED)

    def load() -> nn.Module:
        return (half_rounded if dtype == torch.float32 else in_float32)(engine.unet(model, arm))

    return Subject(label, f"{engine.content(model, arm)} {label}", cache(load))


class InFloat32(nn.Module):
    """A copy of a half-precision UNet that computes in float32 and takes and gives what the original does."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        with quiet():  # diffusers warns of a cast that it need not know of
            self.unet = copy.deepcopy(unet).to(torch.float32)

    def forward(self, sample: Tensor, timestep: Any, **conditions: Any) -> tuple[Tensor]:
        wide = {name: _widened(value) for name, value in conditions.items()}
        return (self.unet(sample.float(), timestep, **wide)[0],)


def in_float32(unet: nn.Module) -> nn.Module:
    """`unet` as InFloat32."""
    return InFloat32(unet)


def half_rounded(unet: nn.Module) -> nn.Module:
    """A copy of a float32 UNet with every number between its layers rounded to float16."""
    rounded = copy.deepcopy(unet)
    for parameter in rounded.parameters():
        parameter.data = _rounded(parameter.data)
    for module in rounded.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(_round_output)
    return rounded


def _round_output(_: nn.Module, __: Any, output: Any) -> Any:
    return _rounded(output) if isinstance(output, Tensor) else output


def _rounded(value: Tensor) -> Tensor:
    return value.half().float() if value.dtype == torch.float32 else value


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return {name: _widened(part) for name, part in value.items()} if isinstance(value, dict) else value
