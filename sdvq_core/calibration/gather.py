"""Statistics of layers over sampling trajectories: hooks look at every input, the caller drives the sampling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdvq_core.calibration.moments import SecondMoment
from sdvq_core.calibration.passes import Gathering, default_budget, split_passes
from sdvq_core.calibration.settings import CalibrationSettings
from sdvq_core.calibration.sharing import InputIdentity, SharedInput, Trajectory, Whereabouts, shared_inputs
from sdvq_core.errors import ConfigError, LayerError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.records import BaseInfo
from sdvq_core.store import BlockLayout, StatsFolder, StatsInfo, StatsWriter


def collect(
    model: nn.Module,
    names: Sequence[str],
    trajectories: Sequence[Trajectory],
    settings: CalibrationSettings,
    folder: Path,
    base: BaseInfo,
    budget: int | None = None,
) -> Iterator[Progress | Notice | StatsFolder]:
    """Progress per call of `model`, then the statistics of the layers `names`, kept in `folder`.

    budget: bytes for second moments on the model's device, by default half of what is free; what exceeds it takes
    further passes over the trajectories. Layers that `folder` already has, from the same model and settings, are not
    gathered again. Raises LayerError for inputs that are NaN or infinite.
    """
    writer = StatsWriter(folder, StatsInfo(base, settings.to_json()))
    kept = [(entry.layers[0], entry.layout) for entry in writer.entries if set(entry.layers) & set(names)]
    yield from _notices(kept, f"an earlier run had less memory; remove {folder} to gather it anew")
    missing = [name for name in dict.fromkeys(names) if name not in writer.layers]
    if not trajectories:
        raise ConfigError("calibration needs at least one trajectory to sample")
    if missing:
        device = next(model.parameters()).device
        sources = shared_inputs(model, missing, trajectories[0])
        passes = split_passes(sources, default_budget(device) if budget is None else budget)
        laid_out = [(item.source.layers[0], item.layout) for items in passes for item in items]
        yield from _notices(laid_out, "the whole matrix exceeds the memory budget")
        report = _Reporter(len(passes), sum(trajectory.steps for trajectory in trajectories))
        for number, items in enumerate(passes, start=1):
            gathering = _Pass(items, settings, device)
            for _ in gathering.run(model, trajectories):
                yield report(number, items)
            gathering.save(writer)
            writer.commit()
    yield writer.commit()


class _Pass:
    """One run over all trajectories that fills the second moments of `items`."""

    def __init__(self, items: Sequence[Gathering], settings: CalibrationSettings, device: torch.device) -> None:
        self.settings = settings
        self.moments = {
            item.source: SecondMoment(item.layout, item.source.window, settings.rows_per_forward, device)
            for item in items
        }
        self.calls, self.where = -1, Whereabouts(0)
        self.identity, self.numbers = InputIdentity(), dict[SharedInput, set[int]]()

    def run(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> Iterator[None]:
        """One item per call of the model; the hooks go when the iterator ends or is closed."""
        hooks = self._hooks(model)
        try:
            for trajectory in trajectories:
                self.where = Whereabouts(trajectory.steps)
                for _ in trajectory.run():
                    yield
        finally:
            for hook in hooks:
                hook.remove()

    def save(self, writer: StatsWriter) -> None:
        """Write the finished matrices, and forget them."""
        while self.moments:
            source, moment = self.moments.popitem()
            if not moment.rows:
                raise LayerError(source.layers[0], "saw no input at a step of weight above 0")
            writer.add(source.layers, moment.finish(), moment.layout, moment.rows)

    def _hooks(self, model: nn.Module) -> list[RemovableHandle]:
        hooks = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for source in self.moments:
            for place, name in enumerate(source.layers):
                see: Callable[..., None] = partial(self._see if place == 0 else self._compare, source, name)
                hooks.append(model.get_submodule(name).register_forward_pre_hook(see))
        return hooks

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


class _Reporter:
    """Progress with the time left."""

    def __init__(self, passes: int, calls: int) -> None:
        self.passes, self.total, self.done, self.start = passes, passes * calls, 0, time.monotonic()

    def __call__(self, number: int, items: Sequence[Gathering]) -> Progress:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * max(0, self.total - self.done)
        layers = sum(len(item.source.layers) for item in items)
        text = f"statistics of {layers} layers, pass {number} of {self.passes}"
        return Progress("calibrate", "", self.done, max(self.total, self.done), text, left)


def _notices(items: Sequence[tuple[str, BlockLayout]], end: str) -> Iterator[Notice]:
    """One line per matrix, called by its first layer, that is not whole."""
    for name, layout in items:
        if not layout.is_whole:
            yield Notice(
                f"statistics of {name}: {layout.count} blocks of {layout.block} columns, not {layout.n}; {end}"
            )
