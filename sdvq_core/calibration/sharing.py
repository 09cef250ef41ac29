"""Which layers read the very same input: found by the identity of the tensor during one forward, not by names.

In an SDXL UNet to_q, to_k and to_v of a self-attention share one input, and to_k and to_v of all cross-attentions share
the text states. Layers with one input and one window share one second moment.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.calibration.patches import Window, window_of
from sdvq_core.errors import ConfigError, LayerError
from sdvq_core.grouping import row_length


@dataclass(frozen=True)
class Trajectory:
    """One batch of images from noise to latents. run() starts it: an iterator that calls the model once per item."""

    run: Callable[[], Iterator[object]]
    steps: int


@dataclass(frozen=True)
class SharedInput:
    """Layers with one input, in the order in which they read it; the first is where rows are gathered."""

    layers: tuple[str, ...]
    window: Window | None
    n: int
    channels: int


class InputIdentity:
    """Numbers the distinct input tensors of a forward. A tensor changed in place since counts as another one."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._next = 0

    def number(self, tensor: Tensor) -> int:
        """The number of `tensor`; only while it lives can another layer be given the same one."""
        version = 0 if tensor.is_inference() else tensor._version
        found = self._seen.get(id(tensor))
        if found is not None and found[0]() is tensor and found[1] == version:
            return found[2]
        self._next += 1
        self._seen[id(tensor)] = (weakref.ref(tensor), version, self._next)
        return self._next


class Whereabouts:
    """Where a sampling stands: the step, counted from 0, and its timestep as the model is told."""

    def __init__(self, steps: int) -> None:
        self.steps, self.step, self.time = steps, -1, ""

    def begin(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A forward hook of the model: another step starts."""
        self.step += 1
        told = keywords.get("timestep", arguments[1] if len(arguments) > 1 else None)
        self.time = "" if told is None else f", timestep {float(torch.as_tensor(told).flatten()[0]):g}"

    def check(self, name: str, inputs: Tensor) -> None:
        """LayerError if what layer `name` is given now is NaN or infinite."""
        if not bool(torch.isfinite(inputs).all()):
            raise LayerError(name, f"its input is NaN or infinite at step {self.step + 1} of {self.steps}{self.time}")


def float_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The layers called `names`; LayerError for one that is not there or not a Linear or Conv2d."""
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise LayerError(name, "no such layer in this model")
        window_of(name, known[name])
    return {name: known[name] for name in names}


def shared_inputs(model: nn.Module, names: Sequence[str], trajectory: Trajectory) -> list[SharedInput]:
    """The distinct inputs of the layers `names`, in the order of the forward; runs one step of `trajectory`."""
    layers = float_layers(model, names)
    identity, seen, where = InputIdentity(), dict[str, list[int]](), Whereabouts(trajectory.steps)

    def see(name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        where.check(name, arguments[0])
        seen.setdefault(name, []).append(identity.number(arguments[0]))

    hooks = [layer.register_forward_pre_hook(partial(see, name)) for name, layer in layers.items()]
    hooks.append(model.register_forward_pre_hook(where.begin, with_kwargs=True))
    try:
        _first_step(trajectory)
    finally:
        for hook in hooks:
            hook.remove()
    silent = next((name for name in names if name not in seen), None)
    if silent is not None:
        raise LayerError(silent, "is not reached by the sampling; leave it out or sample with the model that holds it")
    return _grouped(layers, seen)


def _grouped(layers: Mapping[str, nn.Module], seen: Mapping[str, Sequence[int]]) -> list[SharedInput]:
    groups: dict[tuple[tuple[int, ...], Window | None], list[str]] = {}
    for name, numbers in seen.items():
        groups.setdefault((tuple(numbers), window_of(name, layers[name])), []).append(name)
    found = []
    for (_, window), names in groups.items():
        weight = layers[names[0]].weight
        assert isinstance(weight, Tensor)
        found.append(SharedInput(tuple(names), window, row_length(weight.shape), weight.shape[1]))
    return found


def _first_step(trajectory: Trajectory) -> None:
    steps = trajectory.run()
    try:
        next(steps)
    except StopIteration:
        raise ConfigError("the sampling made no step; calibration needs trajectories of one step or more") from None
    finally:
        if isinstance(steps, Generator):
            steps.close()
