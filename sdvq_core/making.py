"""Artifacts in the making: what a job needs is put together, the result goes to the shelf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from sdvq_core.arms import Arm
from sdvq_core.cluster import RayCrew
from sdvq_core.diffusion.hub import fetched
from sdvq_core.diffusion.sources import find_source
from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.production import Means, Order, partial_artifact, produce
from sdvq_core.rates import Rates, Stopwatch
from sdvq_core.shelf import Shelf
from sdvq_core.statistics_crew import CALIBRATE, StatisticsCrew
from sdvq_core.store import Artifact, Unfinished, in_turn
from sdvq_core.tuning import measure

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel


@dataclass(frozen=True)
class Maker:
    """Makes artifacts and puts them on `shelf`.

    device: auto, cpu or cuda. whole: gives the pipeline of a model, asked only where an arm calibrates or learns.
    rates: where the speed is noted.
    """

    shelf: Shelf
    device: str
    means: Means
    whole: Callable[[str], BaseModel]
    rates: Callable[[], Rates]

    def make(self, model: str, arm: Arm, resume: bool = True) -> Iterator[Progress | Notice]:
        """Progress per layer until the artifact is on the shelf. resume: whether an earlier run's layers are used."""
        watch = Stopwatch()
        yield Progress("load", arm.word, 0, 1, "reading the base model")
        if arm.target is not None and self.shelf.rules(model, arm) is None:
            whole, shelf = self.whole(model), self.shelf
            yield from watch.watch(measure(whole, arm.target, shelf.data, shelf.calibration, self.statistics_crew))
        order = self._order(model, arm)
        lock = self.shelf.data / "turns" / f"{order.unfinished.folder.name}.lock"
        yield from watch.watch(in_turn(lock, f"{arm.word} of {order.source.name}", self._produced(order, resume)))
        if self.means.engine == "local":  # what a cluster does says nothing of this machine
            self.rates().note_run(watch, order.source, order.plan, arm.distil.updates if arm.distil else 0)

    def partial(self, model: str, arm: Arm) -> Artifact:
        """What is finished of an artifact in the making; its other layers are in 16 bits."""
        if self.shelf.rules(model, arm) is None:
            raise ConfigError(f"the bits of {arm.word} are not allocated yet; start its compression first")
        return partial_artifact(self._order(model, arm))

    @property
    def statistics_crew(self) -> StatisticsCrew | None:
        """Who gathers statistics; None for this process."""
        from sdvq_core.diffusion.base_model import pick_device

        return StatisticsCrew(pick_device(self.device), self.shelf.data) if self.means.engine == "ray" else None

    def _order(self, model: str, arm: Arm) -> Order:
        from sdvq_core.diffusion.base_model import full_config, pick_device, unet_weights

        source, plan = fetched(find_source(model)), self.shelf.plan(model, arm)
        unfinished = Unfinished(self.shelf.data / "unfinished" / self.shelf.key(model, arm, plan))
        fingerprint, weights, config = self.shelf.fingerprint(model), unet_weights(source), full_config(source)
        device = pick_device(self.device)
        whole = partial(self.whole, model)
        made = Order(source, fingerprint, weights, config, whole, plan, arm, self.shelf.data, unfinished, device)
        made = replace(made, calibration=self.shelf.calibration, max_memory=self.means.max_memory)
        purpose = CALIBRATE if arm.sequential else ""  # block after block, workers keep the pipeline meanwhile
        crew = RayCrew(device, purpose=purpose) if self.means.engine == "ray" else None
        return replace(made, crew=crew, statistics_crew=self.statistics_crew)

    def _produced(self, order: Order, resume: bool) -> Iterator[Progress | Notice]:
        """Progress until the artifact is in the cache; another process may be the first to put it there."""
        key = order.unfinished.folder.name
        if self.shelf.store.get(key) is not None:
            return
        if not resume:
            order.unfinished.forget()
        try:
            for event in produce(order):
                if isinstance(event, Artifact):
                    self.shelf.store.put(key, event)
                else:
                    yield event
        except StoreError:
            if self.shelf.store.get(key) is None:
                raise
        assert self.shelf.store.get(key) is not None
        order.unfinished.remove()
