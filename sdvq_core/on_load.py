"""Compression while diffusers loads a float UNet: `from_pretrained(…, quantization_config=SdvqConfig("rvq:bits=3"))`.

The bytes are those that `compress` makes of the same recipe without statistics. What needs the original's trajectories
(a distillation, bits that are yet to be allocated) is refused; a calibrated method works data-free, and says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from sdvq_core.arms import parse_arm
from sdvq_core.compress import LayerResult, compress
from sdvq_core.diffusion.fingerprint import fingerprint
from sdvq_core.errors import ConfigError, LayerError
from sdvq_core.integrations.encoding import Progress, not_a_unet
from sdvq_core.nn import kind_of, swap_layer
from sdvq_core.plan import CompressionPlan, Rule
from sdvq_core.production import versions
from sdvq_core.records import BaseInfo
from sdvq_core.store import LayerEntry, Manifest
from sdvq_core.store.artifact import StoredTensors, digest
from sdvq_core.store.manifest import card_metadata
from sdvq_core.targets import solution_key

log = logging.getLogger(__name__)

CACHED = re.compile(r"/models--(?P<repo>[^/]+)/snapshots/(?P<commit>[^/]+)")  # in the Hub's cache


class OnLoad:
    """Compresses one UNet by the recipe `word`, but for layers that match `keep`."""

    def __init__(self, word: str, keep: Sequence[str] = ()) -> None:
        self.arm, self.keep = parse_arm(word), tuple(keep)
        self._base = BaseInfo("", "")
        self._plan: CompressionPlan | None = None
        if not self.arm.compresses:
            raise ConfigError(f"{word} makes nothing while a model loads; name a quantizer (rvq:bits=3) or a recipe")
        if self.arm.distil is not None or self.arm.sequential:
            raise ConfigError(self._needs_more("learns from the original's trajectories"))

    def weights(self, model: nn.Module, files: Sequence[Path]) -> Collection[str]:
        """Names of the weights that will be compressed. files: for the fingerprint; none where it is a single file."""
        if type(model).__name__ != "UNet2DConditionModel":
            raise not_a_unet(model, single_file=not files)
        self._base = _base_of(files)
        self._plan = CompressionPlan.resolve(model, [*self._rules(), *_kept_rules(model, self.keep)])
        blind = sorted({item.quantizer.name for item in self._plan.assignments if item.quantizer.calibrated})
        if blind:
            log.warning("%s works without statistics here; `python -m sdvq_core compress` calibrates", ", ".join(blind))
        return {f"{item.name}.weight" for item in self._plan.assignments}

    def compress(self, model: nn.Module, progress: Progress) -> tuple[Manifest, Mapping[str, str]]:
        """Put compressed layers into `model` -> its manifest, its report card. LayerError where weights are not finite.

        progress: wraps the results, whose number it is told, to show how far it is.
        """
        plan = self._plan
        assert plan is not None, "weights() is asked first"
        results: list[LayerResult] = []
        for result in progress(compress(model, plan), len(plan.assignments)):
            results.append(result)
            swap_layer(model, result.record.name, result.tensor)  # lets the original go
        weights = {result.record.name: result.tensor for result in results}
        state: Mapping[str, Any] = model.state_dict()
        kept = {name: state[name].half().cpu() for name in plan.kept}
        bad = next((name for name, tensor in kept.items() if not bool(tensor.isfinite().all())), None)
        if bad is not None:
            raise LayerError(
                bad, "is NaN, infinite or beyond the range of 16-bit floats; load a checkpoint that is finite"
            )
        layers = {name: LayerEntry(weight.format, weight.shape, weight.meta) for name, weight in weights.items()}
        recipe = " without ".join([self.arm.word, *([", ".join(self.keep)] if self.keep else [])])
        sha256 = digest(StoredTensors(weights, kept))
        records = [result.record for result in results]
        return Manifest(self._base, recipe, layers, plan.fallbacks, sha256), card_metadata(records, versions())

    def _rules(self) -> Sequence[Rule]:
        if self.arm.target is None:
            return self.arm.rules
        known = self.arm.allocated.get(solution_key(self._base.fingerprint, self.arm.target))
        if known is None:
            raise ConfigError(self._needs_more("allocates bits by measured damage"))
        return known

    def _needs_more(self, what: str) -> str:
        return (
            f"{self.arm.word} {what}, which takes a whole pipeline; make an artifact with "
            f"`python -m sdvq_core compress MODEL {self.arm.word}` and load that"
        )


def _kept_rules(model: nn.Module, keep: Iterable[str]) -> list[Rule]:
    """Rules that leave alone what matches `keep`: a layer, all below a module of that name anywhere, or a pattern."""
    names, rules = [name for name, module in model.named_modules() if kind_of(module)], []
    for item in keep:
        patterns = (item, f"{item}.*", f"*.{item}", f"*.{item}.*")
        if not any(fnmatchcase(name, pattern) for name in names for pattern in patterns):
            raise ConfigError(
                f"modules_to_not_convert: {item!r} matches no layer; there are layers such as {', '.join(names[:3])}"
            )
        rules += [Rule(pattern, None, optional=True) for pattern in patterns]
    return rules


def _base_of(files: Sequence[Path]) -> BaseInfo:
    """Which model the checkpoint `files` hold; nothing is known of one that came without files."""
    if not files:
        return BaseInfo("unknown", "")
    folder = files[0].parent
    named = folder.parent if folder.name == "unet" else folder
    cached = CACHED.search(folder.as_posix())
    name = cached["repo"].replace("--", "/") + f"@{cached['commit']}" if cached else named.name
    return BaseInfo(name, fingerprint(folder))
