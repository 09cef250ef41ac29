"""What the Workbench keeps warm between jobs: one base model, a few compressed UNets, the cache of artifacts."""

from __future__ import annotations

import logging
import os
import platform
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

from sdvq_core import presets
from sdvq_core.arms import Arm
from sdvq_core.diffusion.sources import Source, find_source
from sdvq_core.errors import ConfigError, ModelError, StoreError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan, Rule
from sdvq_core.production import produce, recipe_digest
from sdvq_core.records import Ledger
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.store import (
    Artifact,
    ModelStore,
    blank_metadata,
    read_manifest,
    read_report,
)

if TYPE_CHECKING:
    from torch import nn

    from sdvq_core.diffusion.base_model import BaseModel
    from sdvq_core.metrics.alignment import Aligner

log = logging.getLogger(__name__)
_FULL_CLIP = "openai/clip-vit-large-patch14"
_UNETS = 6  # compressed UNets kept in memory for the nano tier; one for the SDXL tier


class Engine:
    """Loads, compresses and keeps models. data: folder of caches; device: auto, cpu or cuda.

    calibration: what the user decides about it, for every arm.
    """

    def __init__(self, data: Path, device: str = "auto", calibration: Calibration = DEFAULT) -> None:
        self.data, self.device, self.calibration = data, device, calibration
        self.store = ModelStore(data / "artifacts")
        self._base: BaseModel | None = None
        self._unets: OrderedDict[str, nn.Module] = OrderedDict()

    def base(self, model: str) -> BaseModel:
        """The pipeline of `model`; one is kept, loading another drops it and what was compressed from it."""
        from sdvq_core.diffusion.base_model import load_base

        source = find_source(model)
        if self._base is None or self._base.source != source:
            self._base = None
            self._unets.clear()
            self._base = load_base(source, self.device, self.data)
        return self._base

    def plan(self, model: str, arm: Arm) -> CompressionPlan:
        """What `arm` does to the UNet of `model`, from shapes alone."""
        if arm.base and arm.base != self.fingerprint(model):
            raise ConfigError(
                f"{arm.word} was tuned for another model ({arm.base}); make a recipe for {model} with "
                "`python -m sdvq_core tune`, or use @preview"
            )
        return _plan(find_source(model), arm.rules)

    def ledger(self, model: str, arm: Arm) -> Ledger:
        """Size of `arm` before it is made; exact. For `fp16`, of the model with every tensor in 16 bits."""
        if arm.artifact is not None:
            return read_report(arm.artifact).ledger
        plan = self.plan(model, arm)
        return plan.ledger(blank_metadata(len(plan.assignments)) if arm.rules else {})

    def cached(self, model: str, arm: Arm) -> Path | None:
        """Folder of the finished artifact of `arm`, if there is one."""
        if arm.artifact is not None or not arm.rules:
            return arm.artifact
        return self.store.get(self._key(model, arm, self.plan(model, arm)))

    def compress(self, model: str, arm: Arm) -> Iterator[Progress | Notice | Path]:
        """Progress per layer, then the folder of the artifact; nothing but its folder when it is in the cache."""
        found = self.cached(model, arm)
        if found is None:
            yield Progress("load", arm.word, 0, 1, "loading the base model")
            plan = self.plan(model, arm)
            for event in produce(self.base(model), plan, arm, self.data, self.calibration):
                if isinstance(event, Artifact):
                    found = self.store.put(self._key(model, arm, plan), event)
                else:
                    yield event
            assert found is not None
        yield found

    def unet(self, model: str, arm: Arm) -> nn.Module:
        """The UNet of `arm` on the device: the base's own for `fp16`, else from the artifact, which must exist."""
        from sdvq_core.integrations.loading import load_artifact

        base = self.base(model)
        folder = self.cached(model, arm)
        if folder is None:
            original: nn.Module = base.unet
            return original
        name = str(folder.absolute())
        if name not in self._unets:
            self._check_base(folder, base)
            self._unets[name] = load_artifact(folder, base.device, base.dtype)
            while len(self._unets) > (_UNETS if base.source.tier == "nano" else 1):
                self._unets.popitem(last=False)
        self._unets.move_to_end(name)
        return self._unets[name]

    def discard(self, model: str, arm: Arm) -> bool:
        """Drop a cached artifact that turned out unreadable; False if it is not the cache's to drop."""
        if not arm.rules:
            return False
        self.store.drop(self._key(model, arm, self.plan(model, arm)))
        return True

    def fingerprint(self, model: str) -> str:
        """Digest of the UNet's content."""
        from sdvq_core.diffusion.base_model import fingerprint

        if self._base is not None and self._base.source == find_source(model):
            return self._base.fingerprint
        return fingerprint(find_source(model), self.data)

    @property
    def device_name(self) -> str:
        """What computes, in words."""
        import torch

        if self._base is not None and self._base.device.type == "cuda":
            return str(torch.cuda.get_device_name(self._base.device))
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"

    def aligner(self, tier: str) -> Aligner | None:
        """The judge of a tier, or None where it is not at hand."""
        folder = _judge_folder(tier)
        return None if folder is None else _aligner(folder, "cpu")

    def default_prompts(self, model: str) -> list[str]:
        """Prompts to evaluate on: those that the model's folder keeps apart, else the suggestions for its tier."""
        source = find_source(model)
        held_out = Path(source.location) / "heldout_prompts.txt"
        if held_out.is_file():
            return held_out.read_text("utf-8").splitlines()
        return presets.prompts(source.tier)

    def _key(self, model: str, arm: Arm, plan: CompressionPlan) -> str:
        base = self.fingerprint(model)
        return self.store.key(recipe_digest(find_source(model), base, plan, arm, self.calibration), base)

    def _check_base(self, folder: Path, base: BaseModel) -> None:
        made_from = read_manifest(folder)[1].base
        if made_from.fingerprint != base.fingerprint:
            raise StoreError(
                f"{folder} was made from {made_from.id} ({made_from.fingerprint}), not from {base.source.name} "
                f"({base.fingerprint}); use it with the model that it was made from"
            )


@lru_cache(maxsize=64)
def _plan(source: Source, rules: tuple[Rule, ...]) -> CompressionPlan:
    return CompressionPlan.resolve(_skeleton(source), rules)


@lru_cache(maxsize=4)
def _skeleton(source: Source) -> nn.Module:
    from sdvq_core.diffusion.base_model import unet_skeleton

    skeleton: nn.Module = unet_skeleton(source)
    return skeleton


def _judge_folder(tier: str) -> Path | None:
    """assets/judge (or $SDVQ_JUDGE) for nano; a full-size CLIP from the local Hugging Face cache for SDXL."""
    if tier == "nano":
        folder = Path(os.environ.get("SDVQ_JUDGE") or Path(__file__).resolve().parent.parent / "assets" / "judge")
        return folder if folder.is_dir() else None
    found = try_to_load_from_cache(_FULL_CLIP, "model.safetensors")
    return Path(found).parent if isinstance(found, str) else None


@lru_cache(maxsize=2)
def _aligner(folder: Path, device: str) -> Aligner | None:
    from sdvq_core.metrics.alignment import Aligner

    try:
        return Aligner.load(folder, device)
    except (ModelError, OSError, ValueError) as error:
        log.warning("no alignment scores: %s", error)
        return None
