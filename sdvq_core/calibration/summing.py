"""Second moments of one set of layers: hooks look at every input while the caller drives the sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdvq_core.calibration.moments import SecondMoment
from sdvq_core.calibration.passes import Gathering
from sdvq_core.calibration.settings import CalibrationSettings
from sdvq_core.calibration.sharing import InputIdentity, SharedInput, Trajectory, Whereabouts
from sdvq_core.errors import LayerError
from sdvq_core.store import StatsWriter, UnitSum, write_unit


class Summing:
    """Fills the second moments of `items` while trajectories run."""

    def __init__(self, items: Sequence[Gathering], settings: CalibrationSettings, device: torch.device) -> None:
        self.settings = settings
        self.moments = {
            item.source: SecondMoment(item.layout, item.source.window, settings.rows_per_forward, device)
            for item in items
        }
        self.calls, self.where = -1, Whereabouts(0)
        self.identity, self.numbers = InputIdentity(), dict[SharedInput, set[int]]()

    def run(self, model: nn.Module, trajectories: Sequence[Trajectory], unit: range) -> Iterator[None]:
        """The trajectories that `unit` numbers: one item per call of the model. The hooks go when it ends or is closed.

        Which rows a call contributes depends on its number among those of all trajectories.
        """
        hooks: list[RemovableHandle] = []
        try:
            hooks.extend(self._hooks(model))
            for number in unit:
                self.calls = sum(earlier.steps for earlier in trajectories[:number]) - 1
                self.where = Whereabouts(trajectories[number].steps)
                for _ in trajectories[number].run():
                    yield
        finally:
            for hook in hooks:
                hook.remove()

    def fold(self) -> None:
        """End a unit of work."""
        for moment in self.moments.values():
            moment.fold()

    def save(self, writer: StatsWriter) -> None:
        """Write the finished matrices, and forget them."""
        while self.moments:
            source, moment = self.moments.popitem()
            writer.add(source.layers, finished(source, moment), moment.layout, moment.rows)

    def save_unit(self, path: Path) -> None:
        """Write the sums of this unit, for another worker to add."""
        found = [UnitSum(one.packed_length, one.packed, one.rows, one.weight) for one in self.moments.values()]
        write_unit(path, found)

    def _hooks(self, model: nn.Module) -> Iterator[RemovableHandle]:
        yield model.register_forward_pre_hook(self._begin, with_kwargs=True)
        for source in self.moments:
            for place, name in enumerate(source.layers):
                see: Callable[..., None] = partial(self._see if place == 0 else self._compare, source, name)
                yield model.get_submodule(name).register_forward_pre_hook(see)

    def _begin(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.calls += 1
        self.where.begin(model, arguments, keywords)
        self.identity, self.numbers = InputIdentity(), {}

    def _see(self, source: SharedInput, name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs: Tensor = arguments[0]
        self.where.check(name, inputs)
        self.numbers.setdefault(source, set()).add(self.identity.number(inputs))
        with torch.no_grad():
            seed = self.settings.seed * 1_000_003 + self.calls
            self.moments[source].add(inputs, self.settings.weight(self.where.step), seed)

    def _compare(self, source: SharedInput, name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self.identity.number(arguments[0]) not in self.numbers.get(source, ()):
            raise LayerError(name, f"no longer shares its input with {source.layers[0]}, as it did in the first step")


def finished(source: SharedInput, moment: SecondMoment) -> Tensor:
    """H of `source` as blocks [K, b, b]; LayerError where nothing was seen."""
    if not moment.rows:
        raise LayerError(source.layers[0], "saw no input at a step of weight above 0")
    return moment.finish()
