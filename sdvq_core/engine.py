"""What the Workbench keeps warm between jobs: one base model, a few compressed UNets, the cache of artifacts."""

from __future__ import annotations

import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdvq_core import presets
from sdvq_core.arms import REFERENCE, Arm
from sdvq_core.cluster import RayCrew
from sdvq_core.diffusion.sources import Source, at_hand, find_source
from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.hub_artifacts import HubArtifacts
from sdvq_core.jobs import Notice, Progress
from sdvq_core.nn import footprint, make_ready
from sdvq_core.peers import Peer, make_peer, peer_ledger
from sdvq_core.plan import CompressionPlan, Rule
from sdvq_core.production import DEFAULT_MEANS, Means, Order, partial_artifact, produce, recipe_digest
from sdvq_core.rates import Rates, Stopwatch
from sdvq_core.records import BaseInfo, Footprint, Ledger, Report, TextReport
from sdvq_core.setup import PLAIN, Setup
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.statistics_crew import CALIBRATE, StatisticsCrew
from sdvq_core.store import (
    Artifact,
    ModelStore,
    Unfinished,
    blank_metadata,
    read_manifest,
    read_report,
)
from sdvq_core.targets import Target, guess, solution_key, solve
from sdvq_core.text_encoders import equip
from sdvq_core.tuning import known_damage, measure

if TYPE_CHECKING:
    from torch import nn

    from sdvq_core.diffusion.base_model import BaseModel

_UNETS = 6  # compressed UNets kept in memory for the nano tier; one for the SDXL tier


class Engine:
    """Loads, compresses and keeps models. data: folder of caches; device: auto, cpu or cuda.

    calibration: what the user decides about it, for every arm. mode: how compressed weights are kept in memory, auto,
    resident or streaming; on a CPU it changes no number. setup: how the pipeline around the UNets is kept. means: with
    what artifacts are made.
    """

    def __init__(
        self,
        data: Path,
        device: str = "auto",
        calibration: Calibration = DEFAULT,
        mode: str = "auto",
        setup: Setup = PLAIN,
        means: Means = DEFAULT_MEANS,
    ) -> None:
        self.data, self.device, self.calibration, self.mode = data, device, calibration, mode
        self.setup, self.means = setup, means
        self.store = ModelStore(data / "artifacts")
        self._base: BaseModel | None = None
        self.text: TextReport | None = None  # of the base model's text encoders, where they are compressed
        self._unets: OrderedDict[str, nn.Module] = OrderedDict()
        self.hub = HubArtifacts.from_environment(self.store)
        self._short: dict[str, str] = {}  # why a UNet is not kept in memory as was asked, until it is told
        self._solved: dict[tuple[str, Target], tuple[Rule, ...]] = {}
        self._peers: dict[str, Report] = {}  # of what other libraries made of the base model, by arm

    def is_loaded(self, model: str) -> bool:
        """Whether `base` is in memory."""
        return self._base is not None and self._base.source == find_source(model)

    def base(self, model: str) -> BaseModel:
        """The pipeline of `model`; one is kept, loading another drops it and what was compressed from it."""
        for _ in self.prepare(model):
            pass
        assert self._base is not None
        return self._base

    def prepare(self, model: str) -> Iterator[Progress]:
        """Progress until `base` is in memory, its text encoders as the setup wants them; nothing if they are."""
        from sdvq_core.diffusion.base_model import load_base

        if self.is_loaded(model):
            return
        source = find_source(model)
        self._base = self.text = None
        self._unets.clear()
        self._peers.clear()
        base = load_base(source, self.device, self.data, self.setup.dtype, self.setup.offload)
        for event in equip(base, self.setup.text_encoders, self.data) if self.setup.compresses_text else ():
            if isinstance(event, Progress):
                yield event
            else:
                self.text = event
                base.notices.append(event.sentence)
        self._base = base

    def plan(self, model: str, arm: Arm) -> CompressionPlan:
        """What `arm` does to the UNet of `model`, from shapes alone; a guess where its bits are not allocated yet."""
        source = find_source(model)
        rules = self.rules(model, arm)
        return _plan(source, _guess(source, arm.target) if rules is None and arm.target else rules or ())

    def rules(self, model: str, arm: Arm) -> tuple[Rule, ...] | None:
        """The rules of `arm` for `model`; None where its bits are yet to be allocated."""
        source = find_source(model)
        if arm.target is None:
            return arm.rules
        if not at_hand(source):
            return None
        base = self.fingerprint(model)
        if solution_key(base, arm.target) in arm.allocated:
            return arm.allocated[solution_key(base, arm.target)]
        if (base, arm.target) not in self._solved:
            damage = known_damage(source, base, arm.target, self.data, self.calibration)
            if damage is None:
                return None
            self._solved[base, arm.target] = solve(_skeleton(source), arm.target, damage)
        return self._solved[base, arm.target]

    def check(self, model: str, arm: Arm) -> None:
        """Say before any work what cannot be: a rule that matches nothing, an artifact of another model."""
        self.plan(model, arm)
        if arm.artifact is not None:
            self._check_base(arm.artifact, model)

    def ledger(self, model: str, arm: Arm) -> Ledger:
        """Size of `arm` before it is made; exact once `rules` are known. For `fp16`, with every tensor in 16 bits.

        A peer that chooses its own layers is made for it.
        """
        if arm.artifact is not None:
            return read_report(arm.artifact).ledger
        if arm.peer is not None:
            return self._peer_ledger(model, arm, arm.peer)
        plan = self.plan(model, arm)
        return plan.ledger(blank_metadata(len(plan.assignments)) if arm.compresses else {})

    def cached(self, model: str, arm: Arm) -> Path | None:
        """Folder of the finished artifact of `arm`, if there is one."""
        if arm.artifact is not None or not at_hand(find_source(model)) or not self.rules(model, arm):
            return arm.artifact
        return self.store.get(self._key(model, arm, self.plan(model, arm)))

    def offered(self, model: str, arm: Arm) -> bool:
        """Whether the Hub repository of finished artifacts, where one is configured, has that of `arm`."""
        if self.hub is None or not arm.compresses or not at_hand(find_source(model)) or not self.rules(model, arm):
            return False
        return self.hub.has(self._key(model, arm, self.plan(model, arm)))

    def made(self, model: str, arm: Arm) -> bool:
        """Whether nothing is left to be computed for `arm`: it is here, or can be fetched."""
        return not arm.compresses or self.cached(model, arm) is not None or self.offered(model, arm)

    def _pulled(self, model: str, arm: Arm) -> Generator[Progress | Notice, None, Path | None]:
        """Progress; returns the folder of the artifact from the Hub, if it is sound."""
        assert self.hub is not None
        plan = self.plan(model, arm)
        found: Path | None = None
        for event in self.hub.pull(self._key(model, arm, plan), plan, self.fingerprint(model)):
            if isinstance(event, Path):
                found = event
            else:
                yield replace(event, arm=arm.word) if isinstance(event, Progress) else event
        return found

    def report(self, model: str, arm: Arm) -> Report | None:
        """The report card of an arm that is made already; of a peer, while its model is the one in memory."""
        if arm.peer is not None:
            here = self._base is not None and self._base.source == find_source(model)
            return self._peers.get(str(arm.peer)) if here else None
        folder = self.cached(model, arm)
        return None if folder is None else read_report(folder)

    def compress(self, model: str, arm: Arm, resume: bool = True) -> Iterator[Progress | Notice | Path]:
        """Progress per layer, then the folder of the artifact; nothing but its folder when it is in the cache.

        resume: whether layers that an earlier run has finished are used. The pipeline is loaded only where the arm
        calibrates or learns; else each weight is read from the model's files when its turn comes.
        """
        found = self.cached(model, arm)
        if found is None and self.offered(model, arm):
            found = yield from self._pulled(model, arm)
        if found is None and (maker := self._maker()) is not self:
            yield from maker.compress(model, arm, resume)
            return
        if found is None:
            watch = Stopwatch()
            yield Progress("load", arm.word, 0, 1, "reading the base model")
            if arm.target is not None and self.rules(model, arm) is None:
                damages = measure(self.base(model), arm.target, self.data, self.calibration, self.statistics_crew)
                yield from watch.watch(damages)
            order = self._order(model, arm)
            if not resume:
                order.unfinished.forget()
            yield from watch.watch(self._produced(order))
            found = self.cached(model, arm)
            assert found is not None
            order.unfinished.remove()
            if self.means.engine == "local":  # what a cluster does says nothing of this machine
                self.rates.note_run(watch, order.source, order.plan, arm.distil.updates if arm.distil else 0)
        yield found

    def partial(self, model: str, arm: Arm) -> Artifact:
        """What is finished of an artifact in the making; its other layers are in 16 bits."""
        if self.rules(model, arm) is None:
            raise ConfigError(f"the bits of {arm.word} are not allocated yet; start its compression first")
        return partial_artifact(self._order(model, arm))

    def _maker(self) -> Engine:
        """What makes artifacts: itself, or where the setup changes numbers, one without; they never depend on it."""
        from sdvq_core.diffusion.base_model import pick_device

        if not self.setup.changes(pick_device(self.device)):
            return self
        self._base = self.text = None  # there may be no room for two
        self._unets.clear()
        return Engine(self.data, self.device, self.calibration, means=self.means)

    def unet(self, model: str, arm: Arm) -> nn.Module:
        """The UNet of `arm` on the device: the base's own for `fp16`, a peer's made at once, else from the artifact."""
        base = self.base(model)
        folder = self.cached(model, arm)
        if arm.peer is not None:
            return self._kept(base, str(arm.peer), partial(self._make_peer, base, arm.peer))
        if folder is not None:
            base.placement.rest("unet")
            return self._kept(base, str(folder.absolute()), partial(self._load, base, folder))
        original: nn.Module = base.unet
        return original

    def footprint(self, model: str, arm: Arm) -> Footprint:
        """How the UNet of `arm` keeps its weights in memory, and what they take there; loads it where need be."""
        return footprint(self.unet(model, arm))

    def ready(self, model: str, arm: Arm) -> Iterator[Progress | Notice]:
        """Progress until `unet` is in memory; a cached artifact that turns out to be damaged is made once more.

        A notice says when memory was too short for the mode that was asked for.
        """
        if arm.peer is not None and self.report(model, arm) is None:
            yield Progress("compress", arm.word, 0, 1, f"quantizing with {arm.peer.package}")
        if arm.compresses:
            yield from self._made(model, arm)
        try:
            self.unet(model, arm)
        except StoreError:
            if not arm.compresses:
                raise
            self.store.drop(self._key(model, arm, self.plan(model, arm)))
            yield from self._made(model, arm)
            self.unet(model, arm)
        reason = self._short.pop(str(self.cached(model, arm)), None)
        if reason is not None:
            yield Notice(f"{arm.word}: {reason}")

    def _order(self, model: str, arm: Arm) -> Order:
        from sdvq_core.diffusion.base_model import full_config, pick_device, unet_weights

        source, plan = find_source(model), self.plan(model, arm)
        unfinished = Unfinished(self.data / "unfinished" / self._key(model, arm, plan))
        fingerprint, weights, config = self.fingerprint(model), unet_weights(source), full_config(source)
        device = pick_device(self.device)
        whole = partial(self.base, model)
        made = Order(source, fingerprint, weights, config, whole, plan, arm, self.data, unfinished, device)
        made = replace(made, calibration=self.calibration, max_memory=self.means.max_memory)
        purpose = CALIBRATE if arm.sequential else ""  # block after block, workers keep the pipeline meanwhile
        crew = RayCrew(device, purpose=purpose) if self.means.engine == "ray" else None
        return replace(made, crew=crew, statistics_crew=self.statistics_crew)

    def _produced(self, order: Order) -> Iterator[Progress | Notice]:
        """Progress until the artifact is in the cache; another process may be the first to put it there."""
        key = order.unfinished.folder.name
        try:
            for event in produce(order):
                if isinstance(event, Artifact):
                    self.store.put(key, event)
                else:
                    yield event
        except StoreError:
            if self.store.get(key) is None:
                raise

    def _made(self, model: str, arm: Arm) -> Iterator[Progress | Notice]:
        return (event for event in self.compress(model, arm) if not isinstance(event, Path))

    def content(self, model: str, arm: Arm) -> str:
        """Which weights `arm` computes with: `fp16`, a library and its version, or the digest of its artifact."""
        if arm.peer is not None:
            return f"{arm.peer} {arm.peer.version()}"
        folder = self.cached(model, arm)
        return REFERENCE if folder is None else read_manifest(folder)[1].sha256

    def fingerprint(self, model: str) -> str:
        """Digest of the UNet's content."""
        from sdvq_core.diffusion.base_model import fingerprint

        if self._base is not None and self._base.source == find_source(model):
            return self._base.fingerprint
        return fingerprint(find_source(model), self.data)

    @property
    def statistics_crew(self) -> StatisticsCrew | None:
        """Who gathers statistics; None for this process."""
        from sdvq_core.diffusion.base_model import pick_device

        return StatisticsCrew(pick_device(self.device), self.data) if self.means.engine == "ray" else None

    @property
    def rates(self) -> Rates:
        """How fast this device was so far."""
        return Rates(self.data, self.device_name)

    @property
    def device_kind(self) -> str:
        """GPU or CPU: what computes, in one word."""
        return "CPU" if self.device_name.partition(",")[0].endswith(" CPU") else "GPU"

    @property
    def device_name(self) -> str:
        """What computes, in words."""
        import torch

        if self.device != "cpu" and torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
        threads = torch.get_num_threads()
        return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"

    def default_prompts(self, model: str) -> list[str]:
        """Prompts to evaluate on: those that the model's folder keeps apart, else the suggestions for its tier."""
        source = find_source(model)
        held_out = Path(source.location) / "heldout_prompts.txt"
        if held_out.is_file():
            return held_out.read_text("utf-8").splitlines()
        return presets.prompts(source.tier)

    def _kept(self, base: BaseModel, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """What is in memory under `name`, or what `make` gives; the eldest go first, to make room for it."""
        if name not in self._unets:
            while len(self._unets) >= (_UNETS if base.source.tier == "nano" else 1):
                self._unets.popitem(last=False)
            self._unets[name] = make()
        self._unets.move_to_end(name)
        return self._unets[name]

    def _load(self, base: BaseModel, folder: Path) -> nn.Module:
        from sdvq_core.integrations.loading import load_artifact

        self._check_base(folder, base.source.name)
        found: nn.Module = load_artifact(folder, base.device, base.dtype, "streaming")
        reason = make_ready(found, self.mode, base.dtype)
        if reason is not None:
            self._short[str(folder)] = reason
        return found

    def _make_peer(self, base: BaseModel, peer: Peer) -> nn.Module:
        """The UNet of a peer; its report is kept, and costs little."""
        start = time.monotonic()
        made = make_peer(base.unet, peer)
        info, versions = BaseInfo(base.source.name, base.fingerprint), {peer.package: str(peer.version())}
        seconds = time.monotonic() - start
        self._peers[str(peer)] = Report("", info, str(peer), made.ledger, made.layers, seconds, versions)
        return made.unet

    def _peer_ledger(self, model: str, arm: Arm, peer: Peer) -> Ledger:
        if self.report(model, arm) is None:
            if peer.layers == "same":
                return _ledger_of_peer(find_source(model), peer)
            self.unet(model, arm)
        return self._peers[str(peer)].ledger

    def _key(self, model: str, arm: Arm, plan: CompressionPlan) -> str:
        base = self.fingerprint(model)
        return self.store.key(recipe_digest(find_source(model), base, plan, arm, self.calibration), base)

    def _check_base(self, folder: Path, model: str) -> None:
        made_from, fingerprint = read_manifest(folder)[1].base, self.fingerprint(model)
        if made_from.fingerprint != fingerprint:
            raise StoreError(
                f"{folder} was made from {made_from.id} ({made_from.fingerprint}), not from {model} ({fingerprint}); "
                "use it with the model that it was made from"
            )


@lru_cache(maxsize=64)
def _plan(source: Source, rules: tuple[Rule, ...]) -> CompressionPlan:
    return CompressionPlan.resolve(_skeleton(source), rules)


@lru_cache(maxsize=64)
def _guess(source: Source, target: Target) -> tuple[Rule, ...]:
    return guess(_skeleton(source), target)


@lru_cache(maxsize=64)
def _ledger_of_peer(source: Source, peer: Peer) -> Ledger:
    return peer_ledger(_skeleton(source), peer)


@lru_cache(maxsize=4)
def _skeleton(source: Source) -> nn.Module:
    from sdvq_core.diffusion.base_model import unet_skeleton

    skeleton: nn.Module = unet_skeleton(source)
    return skeleton
