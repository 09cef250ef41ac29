"""Runs a plan: one result per layer, in the order of the network. The caller owns progress, storage and cancelling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdvq_core.errors import LayerError
from sdvq_core.metrics.weights import relative_mse, relative_output_mse
from sdvq_core.plan import Assignment, CompressionPlan
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import Encoder
from sdvq_core.records import LayerRecord, LayerStats

Finished = Callable[[str], tuple[QuantizedTensor, LayerRecord] | None]


@dataclass(frozen=True, eq=False)
class LayerResult:
    """One finished layer: its line of the table and its compressed weight. index counts from 0 to total - 1.

    fresh: False for one that an earlier run has finished.
    """

    record: LayerRecord
    tensor: QuantizedTensor
    index: int
    total: int
    fresh: bool = True


def compress(
    model: nn.Module,
    plan: CompressionPlan,
    stats: Mapping[str, LayerStats] | None = None,
    order: Sequence[str] | None = None,
    done: Finished = lambda name: None,
) -> Iterator[LayerResult]:
    """Compress the layers of `model` as `plan` says; the model itself is not changed.

    stats: asked for a layer when its turn comes. order: names of the plan's layers, by default in its own order.
    done: gives the layers that an earlier run of the same plan has finished; they are not computed again.
    LayerError names a layer with weights that are not finite, or that 16-bit scales cannot hold.
    """
    weights = {item.name: _weight(model, item.name) for item in plan.assignments}
    shared = SharedSets(plan, weights)
    turns = {item.name: item for item in plan.assignments}
    for index, item in enumerate(turns[name] for name in order or turns):
        earlier = done(item.name)
        if earlier is not None and shared.agree(item, earlier[0]):
            yield LayerResult(earlier[1], earlier[0], index, len(plan.assignments), fresh=False)
            continue
        layer_stats = None if stats is None else stats.get(item.name)
        with torch.no_grad():
            tensor = shared.encoder(item)(weights[item.name], layer_stats)
            shared.agree(item, tensor)
            record = layer_record(item, weights[item.name], tensor, layer_stats)
        yield LayerResult(record, tensor, index, len(plan.assignments))


class SharedSets:
    """The codebook sets that several layers use: fitted at their first layer, or taken from a finished one."""

    def __init__(self, plan: CompressionPlan, weights: Mapping[str, Tensor]) -> None:
        self._plan, self._weights = plan, weights
        self._encoders: dict[str, Encoder] = {}
        self._books: dict[str, Tensor] = {}

    def encoder(self, item: Assignment) -> Encoder:
        """What encodes the layer of `item`."""
        key = item.quantizer.sharing_key(item.shape)
        if not key:
            return item.quantizer.quantize
        if key not in self._encoders:
            members = [other for other in self._plan.assignments if other.quantizer.sharing_key(other.shape) == key]
            self._encoders[key] = item.quantizer.fit_shared([self._weights[member.name] for member in members])
        return self._encoders[key]

    def agree(self, item: Assignment, tensor: QuantizedTensor) -> bool:
        """Whether `tensor` was made with the set in use, which the first tensor of a set decides."""
        key = item.quantizer.sharing_key(item.shape)
        if not key:
            return True
        (name,) = (name for name, spec in tensor.spec.items() if spec.shared)
        book = self._books.setdefault(key, tensor.tensors[name])
        self._encoders.setdefault(key, item.quantizer.bound_to(tensor))
        return torch.equal(book, tensor.tensors[name])


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    if not bool(torch.isfinite(weight).all()):
        raise LayerError(name, "has weights that are NaN or infinite; compress a checkpoint whose weights are finite")
    return weight.detach()


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
