"""What the Workbench keeps warm between jobs: one base model and a few UNets that were made of it."""

from __future__ import annotations

import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdvq_core import presets
from sdvq_core.arms import REFERENCE, Arm
from sdvq_core.diffusion.sources import find_source
from sdvq_core.errors import StoreError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.making import Maker
from sdvq_core.nn import footprint, make_ready
from sdvq_core.peers import Peer, make_peer
from sdvq_core.production import DEFAULT_MEANS, Means
from sdvq_core.rates import Rates
from sdvq_core.records import BaseInfo, Footprint, Ledger, Report, TextReport
from sdvq_core.setup import PLAIN, Setup
from sdvq_core.shelf import Shelf
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.store import (
    read_manifest,
    read_report,
)
from sdvq_core.text_encoders import equip

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
        self.shelf = Shelf(data, calibration)
        self.maker = Maker(self.shelf, device, means, self.base, lambda: self.rates)
        self._base: BaseModel | None = None
        self.text: TextReport | None = None  # of the base model's text encoders, where they are compressed
        self._unets: OrderedDict[str, nn.Module] = OrderedDict()
        self._short: dict[str, str] = {}  # why a UNet is not kept in memory as was asked, until it is told
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
        self._let_go()
        base = load_base(source, self.device, self.data, self.setup.dtype, self.setup.offload)
        for event in equip(base, self.setup.text_encoders, self.data) if self.setup.compresses_text else ():
            if isinstance(event, Progress):
                yield event
            else:
                self.text = event
                base.notices.append(event.sentence)
        self._base, self.shelf.loaded = base, (base.source, base.fingerprint)

    def _let_go(self) -> None:
        """There may be no room for two."""
        self._base = self.text = self.shelf.loaded = None
        self._unets.clear()
        self._peers.clear()

    def ledger(self, model: str, arm: Arm) -> Ledger:
        """`Shelf.ledger`; a peer that chooses its own layers is made for it."""
        if arm.peer is not None and self.report(model, arm) is None and arm.peer.layers != "same":
            self.unet(model, arm)
        made = self.report(model, arm) if arm.peer is not None else None
        return self.shelf.ledger(model, arm) if made is None else made.ledger

    def report(self, model: str, arm: Arm) -> Report | None:
        """The report card of an arm that is made already; of a peer, while its model is the one in memory."""
        if arm.peer is not None:
            return self._peers.get(str(arm.peer)) if self.is_loaded(model) else None
        folder = self.shelf.cached(model, arm)
        return None if folder is None else read_report(folder)

    def compress(self, model: str, arm: Arm, resume: bool = True) -> Iterator[Progress | Notice | Path]:
        """Progress per layer, then the folder of the artifact; nothing but its folder when it is in the cache.

        resume: whether layers that an earlier run has finished are used. The pipeline is loaded only where the arm
        calibrates or learns; else each weight is read from the model's files when its turn comes.
        """
        found = self.shelf.cached(model, arm)
        if found is None and self.shelf.offered(model, arm):
            found = yield from self.shelf.pull(model, arm)
        if found is None:
            yield from self._maker_of_numbers().make(model, arm, resume)
            found = self.shelf.cached(model, arm)
            assert found is not None
        yield found

    def _maker_of_numbers(self) -> Maker:
        """Its own maker, or one without a setup that changes numbers; artifacts never depend on it."""
        from sdvq_core.diffusion.base_model import pick_device

        if not self.setup.changes(pick_device(self.device)):
            return self.maker
        self._let_go()
        return Engine(self.data, self.device, self.calibration, means=self.means).maker

    def unet(self, model: str, arm: Arm) -> nn.Module:
        """The UNet of `arm` on the device: the base's own for `fp16`, a peer's made at once, else from the artifact."""
        base = self.base(model)
        folder = self.shelf.cached(model, arm)
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
            self.shelf.drop(model, arm)
            yield from self._made(model, arm)
            self.unet(model, arm)
        reason = self._short.pop(str(self.shelf.cached(model, arm)), None)
        if reason is not None:
            yield Notice(f"{arm.word}: {reason}")

    def _made(self, model: str, arm: Arm) -> Iterator[Progress | Notice]:
        return (event for event in self.compress(model, arm) if not isinstance(event, Path))

    def content(self, model: str, arm: Arm) -> str:
        """Which weights `arm` computes with: `fp16`, a library and its version, or the digest of its artifact."""
        if arm.peer is not None:
            return f"{arm.peer} {arm.peer.version()}"
        folder = self.shelf.cached(model, arm)
        return REFERENCE if folder is None else read_manifest(folder)[1].sha256

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

        self.shelf.check_base(folder, base.source.name)
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
