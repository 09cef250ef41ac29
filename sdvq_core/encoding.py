"""One layer at a time: what a worker needs for it, and what comes out. A weight is asked for when its turn comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdvq_core.crew import Crew
from sdvq_core.errors import LayerError
from sdvq_core.metrics.weights import relative_mse, relative_output_mse
from sdvq_core.plan import Assignment, CompressionPlan
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers import Quantizer
from sdvq_core.records import LayerRecord, LayerStats

Weights = Mapping[str, Tensor]  # by parameter name, such as conv_in.weight
Layer = tuple[QuantizedTensor, LayerRecord]  # a finished one: its weight and its line of the table


@dataclass(frozen=True, eq=False)
class LayerTask:
    """What a worker needs for one layer. codebooks: the shared set that it is encoded with, None for one of its own.

    finished: what an earlier run has made of it.
    """

    item: Assignment
    weights: Weights
    stats: Mapping[str, LayerStats] | None
    codebooks: Tensor | None
    device: torch.device
    finished: Layer | None = None


def encode_layer(task: LayerTask) -> Layer:
    """The compressed weight of one layer and its line of the table."""
    if task.finished is not None:
        return task.finished
    item, stats = task.item, None if task.stats is None else task.stats.get(task.item.name)
    encode = item.quantizer.quantize if task.codebooks is None else item.quantizer.bound_to(task.codebooks)
    with torch.no_grad():
        weight = finite_weight(task.weights, item.name, task.device)
        tensor = encode(weight, stats)
        return tensor, layer_record(item, weight, tensor, stats)


def layer_record(item: Assignment, weight: Tensor, tensor: QuantizedTensor, stats: LayerStats | None) -> LayerRecord:
    """The line of the table for `weight` [O, I] or [O, I, kh, kw] and its compressed form."""
    decoded = tensor.dequantize()
    if not bool(torch.isfinite(decoded).all()):
        raise LayerError(
            item.name, f"has weights up to {float(weight.abs().max()):g}, beyond the range of 16-bit scales"
        )
    output = None if stats is None else relative_output_mse(weight, decoded, stats.second_moment)
    return LayerRecord(
        item.name,
        item.kind,
        item.shape,
        str(item.quantizer),
        tensor.bits_per_weight,
        tensor.nbytes,
        relative_mse(weight, decoded),
        output,
    )


def finite_weight(weights: Weights, name: str, device: torch.device | None = None) -> Tensor:
    """The weight of layer `name`, on `device` where one is given; LayerError unless all of it is finite."""
    weight = weights[f"{name}.weight"]
    if not bool(torch.isfinite(weight).all()):
        raise LayerError(name, "has weights that are NaN or infinite; compress a checkpoint whose weights are finite")
    return weight if device is None else weight.to(device)


class SharedSets:
    """The codebook sets that several layers use: fitted at their first layer, or taken from a finished one."""

    def __init__(self, plan: CompressionPlan, weights: Weights, device: torch.device, crew: Crew) -> None:
        self._plan, self._weights, self._device, self._crew = plan, weights, device, crew
        self._books: dict[str, Tensor] = {}

    def codebooks(self, item: Assignment) -> Tensor | None:
        """The set that the layer of `item` is encoded with, None for a layer that has its own."""
        key = item.quantizer.sharing_key(item.shape)
        if not key or key in self._books:
            return self._books.get(key)
        members = [other for other in self._plan.assignments if other.quantizer.sharing_key(other.shape) == key]
        (found,) = self._crew.run(_fit, [(item.quantizer, _Members(self._weights, members, self._device))])
        if found is not None:
            self._books[key] = found
        return found

    def agree(self, item: Assignment, tensor: QuantizedTensor) -> bool:
        """Whether `tensor` was made with the set in use, which the first tensor of a set decides."""
        key = item.quantizer.sharing_key(item.shape)
        if not key:
            return True
        (name,) = (name for name, spec in tensor.spec.items() if spec.shared)
        found = tensor.tensors[name].to(self._device)
        return torch.equal(self._books.setdefault(key, found), found)


def _fit(task: tuple[Quantizer, Sequence[Tensor]]) -> Tensor | None:
    quantizer, weights = task
    with torch.no_grad():
        return quantizer.fit_shared(weights)


class _Members(Sequence[Tensor]):
    """The weights of the layers that share a set, one in memory at a time."""

    def __init__(self, weights: Weights, members: Sequence[Assignment], device: torch.device) -> None:
        self._weights, self._members, self._device = weights, members, device

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # nobody slices it
        return finite_weight(self._weights, self._members[index].name, self._device)

    def __len__(self) -> int:
        return len(self._members)


class ModuleWeights(Mapping[str, Tensor]):
    """The parameters of a model by name, as they are when they are asked for; nothing is held or copied."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __getitem__(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        value: Tensor = getattr(self._model.get_submodule(owner), leaf)
        return value.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.state_dict())

    def __len__(self) -> int:
        return len(self._model.state_dict())
