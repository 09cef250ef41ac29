"""Runs a plan: one result per layer, in the order of the network. The caller owns progress, storage and cancelling.

Weights are asked for one layer at a time, so that a model may stay on the disk; a crew works on several layers at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sdvq_core.crew import Alone, Crew, Threads
from sdvq_core.encoding import Layer, LayerTask, ModuleWeights, SharedSets, Weights, encode_layer, finite_weight
from sdvq_core.errors import ConfigError
from sdvq_core.memory import free_nbytes
from sdvq_core.plan import Assignment, CompressionPlan
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import LayerRecord, LayerStats

Finished = Callable[[str], Layer | None]
Keep = Callable[[QuantizedTensor, LayerRecord], None]

_WORKING_NBYTES = 48  # per weight of a layer while it is encoded: float32 rows, points, importance, codes
_MOMENT_NBYTES = 24  # per entry of a second moment: float32, and factors in float64


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
    model: nn.Module | Weights,
    plan: CompressionPlan,
    stats: Mapping[str, LayerStats] | None = None,
    order: Sequence[str] | None = None,
    done: Finished = lambda name: None,
) -> Iterator[LayerResult]:
    """Compress the layers of `model` as `plan` says; the model itself is not changed.

    model: a UNet, or its parameters by name, which are then asked for when their turn comes. stats: asked for a layer
    when its turn comes. order: names of the plan's layers, by default in its own order. done: gives the layers that an
    earlier run of the same plan has finished; they are not computed again.
    LayerError names a layer with weights that are not finite, or that 16-bit scales cannot hold.
    """
    weights = ModuleWeights(model) if isinstance(model, nn.Module) else model
    run = Compression(plan, weights, _device_of(weights, plan), done=done)
    run.check()
    yield from run.layers(order or [item.name for item in plan.assignments], stats)


class Compression:
    """One run of a plan, which may be asked for its layers in several parts; shared codebook sets stay between them.

    crew: who works; by default all cores, as far as memory goes, or the GPU that `device` is. keep: hears of a layer
    as soon as it is finished, on the thread that made it.
    """

    def __init__(
        self,
        plan: CompressionPlan,
        weights: Weights,
        device: torch.device,
        crew: Crew | None = None,
        done: Finished = lambda name: None,
        keep: Keep = lambda tensor, record: None,
    ) -> None:
        self.plan, self.weights, self.device = plan, weights, device
        self._crew = crew or crew_for(plan, device)
        self._finished, self._keep = done, keep
        self._items = {item.name: item for item in plan.assignments}
        self._shared = SharedSets(plan, weights, device, self._crew)
        self._earlier: set[str] = set()  # names of the layers that an earlier run has finished
        self._index = 0

    def check(self) -> None:
        """LayerError for the first layer with a weight that is not finite: said before the work, not after half."""
        for item in self.plan.assignments:
            finite_weight(self.weights, item.name)

    def layers(self, names: Iterable[str], stats: Mapping[str, LayerStats] | None = None) -> Iterator[LayerResult]:
        """The layers called `names`, in that order."""
        tasks = (self._task(self._items[name], stats) for name in names)
        for tensor, record in self._crew.run(encode_layer, tasks, self._landed):
            yield LayerResult(record, tensor, self._index, len(self._items), record.name not in self._earlier)
            self._index += 1

    def _task(self, item: Assignment, stats: Mapping[str, LayerStats] | None) -> LayerTask:
        finished = self._finished(item.name)
        if finished is not None and not self._shared.agree(item, finished[0]):
            finished = None
        if finished is not None:
            self._earlier.add(item.name)
        codebooks = None if finished is not None else self._shared.codebooks(item)
        return LayerTask(item, self.weights, _of_one(stats, item.name), codebooks, self.device, finished)

    def _landed(self, task: LayerTask, result: Layer) -> None:
        if task.finished is None:
            self._keep(*result)


def working_nbytes(item: Assignment) -> int:
    """What encoding one layer takes beside its codes, at most."""
    columns = math.prod(item.shape[1:])
    return _WORKING_NBYTES * math.prod(item.shape) + (_MOMENT_NBYTES * columns**2 if item.quantizer.calibrated else 0)


def crew_for(plan: CompressionPlan, device: torch.device, most: int | None = None) -> Crew:
    """A GPU works alone; on the CPU as many threads as torch has, as far as `most` bytes of memory go.

    most: by default what is free. ConfigError where not even one layer fits.
    """
    if device.type != "cpu":
        return Alone()
    needed = max(map(working_nbytes, plan.assignments), default=0)
    if most is not None and needed > most:
        raise ConfigError(
            f"one layer of this plan needs {_gigabytes(needed)} GB of memory while it is compressed, "
            f"{_gigabytes(most)} GB may be used; allow {math.ceil(needed / 1e7) / 100:g} GB or more"
        )
    room = free_nbytes(device) if most is None else most
    return Threads(min(torch.get_num_threads(), room // max(1, needed)))


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f}" if nbytes >= 1e7 else f"{nbytes / 1e9:.9f}".rstrip("0").rstrip(".")


def _of_one(stats: Mapping[str, LayerStats] | None, name: str) -> Mapping[str, LayerStats] | None:
    """Statistics of one layer, where they are a folder's: a task may travel."""
    only = getattr(stats, "only", None)
    return stats if only is None else only([name])


def _device_of(weights: Weights, plan: CompressionPlan) -> torch.device:
    return next((weights[f"{item.name}.weight"].device for item in plan.assignments), torch.device("cpu"))
