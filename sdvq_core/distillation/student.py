"""A compressed UNet that can learn: codes are fixed, every other stored array and what stays in 16 bits is a parameter.

Scales are multiplied by exp(a), the other arrays are learnt in units of their own size, so that one learning rate suits
all. A shared codebook is one parameter, however many layers use it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sdvq_core.qtensor import QuantizedTensor, get_format

_TINY = 1e-8


class Learnt(nn.Module):
    """One stored float array: `start` and what is learnt about it."""

    start: Tensor
    unit: Tensor

    def __init__(self, start: Tensor, scaling: bool) -> None:
        super().__init__()
        value = start.detach().float()
        self.scaling = scaling
        self.register_buffer("start", value)
        self.register_buffer("unit", value.square().mean().sqrt().clamp_min(_TINY))
        self.change = nn.Parameter(torch.zeros_like(value))

    def forward(self) -> Tensor:
        return self.start * self.change.exp() if self.scaling else self.start + self.unit * self.change


class _Weight(nn.Module):
    """Stands in for a layer's weight: decoded from fixed codes and learnt arrays."""

    unpacked: Tensor

    def __init__(self, weight: QuantizedTensor, learnt: Mapping[str, Learnt]) -> None:
        super().__init__()
        self.weight = weight
        form = get_format(weight.format)
        self.register_buffer("unpacked", form.unpacked(weight.tensors, weight.shape, weight.meta))
        self.learnt = nn.ModuleDict(learnt)

    def stored(self) -> dict[str, Tensor]:
        """Every stored array, learnt ones as they are now."""
        return {**self.weight.tensors, **{name: module() for name, module in self.learnt.items()}}

    def forward(self, original: Tensor) -> Tensor:
        form = get_format(self.weight.format)
        return form.assemble(self.unpacked, self.stored(), self.weight.shape, self.weight.meta).to(original.dtype)


class Student:
    """A copy of the original UNet whose layers are decoded from `weights`; `model` runs like any UNet."""

    def __init__(self, original: nn.Module, weights: Mapping[str, QuantizedTensor]) -> None:
        self.model = copy.deepcopy(original).float().requires_grad_(True)
        self._weights: dict[str, _Weight] = {}
        shared: dict[str, Learnt] = {}
        for name, weight in weights.items():
            layer = self.model.get_submodule(name)
            plain = layer.weight
            assert isinstance(plain, Tensor)
            plain.requires_grad_(False)
            self._weights[name] = _Weight(weight, _learnt(weight, shared))
            parametrize.register_parametrization(layer, "weight", self._weights[name], unsafe=True)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of all that learns, each once."""
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set the parameters, by their names in `parameters`."""
        for name, parameter in self.parameters():
            parameter.copy_(values[name])

    def weights(self) -> dict[str, QuantizedTensor]:
        """The compressed weights as learnt, in their stored dtypes."""
        found, halves = {}, dict[int, Tensor]()
        for name, module in self._weights.items():
            tensors = dict(module.weight.tensors)
            for key, learnt in module.learnt.items():
                if id(learnt) not in halves:
                    assert isinstance(learnt, Learnt)
                    halves[id(learnt)] = learnt().detach().to(tensors[key].dtype)
                tensors[key] = halves[id(learnt)]
            found[name] = QuantizedTensor(module.weight.format, module.weight.shape, tensors, module.weight.meta)
        return found

    def kept(self) -> dict[str, Tensor]:
        """What is not compressed, as learnt: float32, under its name in the original UNet."""
        return {
            name: value.detach().clone()
            for name, value in self.model.state_dict().items()
            if ".parametrizations." not in name
        }


def decoded_copy(original: nn.Module, weights: Mapping[str, QuantizedTensor]) -> nn.Module:
    """A plain copy of `original` with the decoded weights in place; nothing in it learns."""
    model = copy.deepcopy(original).requires_grad_(False)
    for name, weight in weights.items():
        plain = model.get_submodule(name).weight
        assert isinstance(plain, Tensor)
        plain.copy_(weight.dequantize(plain.dtype))
    return model


def _learnt(weight: QuantizedTensor, shared: dict[str, Learnt]) -> dict[str, Learnt]:
    found = {}
    for name, spec in weight.spec.items():
        tensor = weight.tensors[name]
        if not tensor.is_floating_point():
            continue
        if spec.shared:
            found[name] = shared.setdefault(spec.shared, Learnt(tensor, scaling=False))
        else:
            found[name] = Learnt(tensor, scaling=name == "scale")
    return found
