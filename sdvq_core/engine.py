"""What the Workbench keeps warm between jobs: one base model, a few compressed UNets, the cache of artifacts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import try_to_load_from_cache

from sdvq_core import presets, statistics
from sdvq_core.arms import Arm
from sdvq_core.compress import LayerResult, compress
from sdvq_core.diffusion.sources import Source, find_source
from sdvq_core.errors import ModelError, SdvqError, StoreError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan, Rule
from sdvq_core.records import BaseInfo, LayerStats, Ledger
from sdvq_core.store import (
    Artifact,
    LayerEntry,
    Manifest,
    ModelStore,
    StatsFolder,
    blank_metadata,
    read_manifest,
    read_report,
)
from sdvq_core.store.artifact import digest, stored_tensors
from sdvq_core.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from sdvq_core.diffusion.base_model import BaseModel
    from sdvq_core.metrics.alignment import Aligner

log = logging.getLogger(__name__)
_FULL_CLIP = "openai/clip-vit-large-patch14"
_UNETS = 6  # compressed UNets kept in memory for the nano tier; one for the SDXL tier


class Engine:
    """Loads, compresses and keeps models. data: folder of caches; device: auto, cpu or cuda."""

    def __init__(self, data: Path, device: str = "auto") -> None:
        self.data, self.device = data, device
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
        return self.store.get(self._key(model, self.plan(model, arm)))

    def compress(self, model: str, arm: Arm) -> Iterator[Progress | Notice | Path]:
        """Progress per layer, then the folder of the artifact; nothing but its folder when it is in the cache."""
        found = self.cached(model, arm)
        if found is None:
            yield Progress("load", arm.word, 0, 1, "loading the base model")
            base = self.base(model)
            plan = self.plan(model, arm)
            results: list[LayerResult] = []
            yield from self._run(base, plan, arm, results)
            found = self.store.put(self._key(model, plan), _artifact(base, plan, arm, results))
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
        self.store.drop(self._key(model, self.plan(model, arm)))
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

    def _run(
        self, base: BaseModel, plan: CompressionPlan, arm: Arm, results: list[LayerResult]
    ) -> Iterator[Progress | Notice]:
        stats: Mapping[str, LayerStats] = {}
        for event in statistics.gather(base, plan, self.data) if statistics.calibrated_layers(plan) else ():
            if isinstance(event, StatsFolder):
                stats = event
            else:
                yield replace(event, arm=arm.word) if isinstance(event, Progress) else event
        total = len(plan.assignments)
        weights = [shape[0] * shape[1] for shape in (item.shape for item in plan.assignments)]
        start = time.monotonic()
        yield Progress("compress", arm.word, 0, total, "fitting codebooks")
        for result in compress(base.unet, plan, stats):
            results.append(result)
            done = result.index + 1
            spent = time.monotonic() - start
            left = spent * sum(weights[done:]) / max(1, sum(weights[:done]))
            yield Progress("compress", arm.word, done, total, result.record.name, left)

    def _key(self, model: str, plan: CompressionPlan) -> str:
        recipe = [[item.name, item.quantizer.digest] for item in plan.assignments]
        base = self.fingerprint(model)
        calibrated = statistics.calibrated_layers(plan)
        known = [statistics.statistics_key(find_source(model), base)] if calibrated else []
        return self.store.key(hashlib.sha256(json.dumps([*recipe, *known]).encode()).hexdigest(), base)

    def _check_base(self, folder: Path, base: BaseModel) -> None:
        made_from = read_manifest(folder)[1].base
        if made_from.fingerprint != base.fingerprint:
            raise StoreError(
                f"{folder} was made from {made_from.id} ({made_from.fingerprint}), not from {base.source.name} "
                f"({base.fingerprint}); use it with the model that it was made from"
            )


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the numbers."""
    import diffusers
    import torch

    return {"sdvq": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def _artifact(base: BaseModel, plan: CompressionPlan, arm: Arm, results: list[LayerResult]) -> Artifact:
    weights = {result.record.name: result.tensor for result in results}
    state = base.unet.state_dict()
    kept = {name: state[name].half().cpu() for name in plan.kept}
    bad = next((name for name, tensor in kept.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        raise SdvqError(
            f"{bad} is NaN, infinite or beyond the range of 16-bit floats; compress a checkpoint that is finite"
        )
    layers = {name: LayerEntry(weight.format, weight.shape, weight.meta) for name, weight in weights.items()}
    info = BaseInfo(base.source.name, base.fingerprint)
    recipe = arm.word
    manifest = Manifest(info, recipe, layers, plan.fallbacks, digest(stored_tensors(weights, kept)))
    records = tuple(result.record for result in results)
    return Artifact(_config(base.unet), manifest, weights, kept, records, versions())


def _config(unet: Any) -> dict[str, Any]:
    private = ("_name_or_path", "_use_default_values", "_pre_quantization_dtype", "quantization_config")
    return {name: value for name, value in dict(unet.config).items() if name not in private}


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
