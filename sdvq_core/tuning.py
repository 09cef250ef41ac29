"""Measures, for one model, what a target's quantizers do to its output, and solves for the rules of the target.

Damages are kept in the data folder, one file per quantizer and model: other bits, or one more candidate, cost no second
measurement. A tuned recipe carries its solution for the model that it was tuned on, and is measured anew elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdvq_core import presets, statistics
from sdvq_core.allocation import measure_damage
from sdvq_core.compress import compress
from sdvq_core.diffusion.sources import Source
from sdvq_core.distillation import DistillationSettings, Lessons
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan, Rule, vqdm_rules
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers import Quantizer
from sdvq_core.records import LayerStats
from sdvq_core.store import StatsFolder
from sdvq_core.store.images import write_bytes
from sdvq_core.targets import Target, solve
from sdvq_core.teaching import lessons

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel

_PAIRS = 40  # of image and step, on which damages are measured
_ALGORITHM = 1  # counts changes of the measurement

Damage = Mapping[str, float]


def known_damage(source: Source, fingerprint: str, target: Target, data: Path) -> dict[str, list[float]] | None:
    """Damages by layer, in the order of `target.among`, as kept in `data`; None while one is missing."""
    kept = [_read(_path(source, fingerprint, one, data)) for one in target.among]
    known = [damage for damage in kept if damage is not None]
    if len(known) < len(kept):
        return None
    common = set.intersection(*(set(damage) for damage in known))
    return {name: [damage[name] for damage in known] for name in sorted(common)}


def unmeasured(source: Source, fingerprint: str, target: Target, data: Path) -> list[Quantizer]:
    """The quantizers of `target` whose damages are not kept in `data`."""
    return [one for one in target.among if _read(_path(source, fingerprint, one, data)) is None]


def measure(base: BaseModel, target: Target, data: Path) -> Iterator[Progress | Notice]:
    """Compress every layer by every quantizer of `target` and note the damages that are not kept yet."""
    wanting = unmeasured(base.source, base.fingerprint, target, data)
    known: Lessons | None = None
    for quantizer in wanting:
        if known is None:
            for event in lessons(base, batches=1):
                if isinstance(event, Progress):
                    yield event
                else:
                    known = event
        assert known is not None
        yield from _measure(base, quantizer, known, data)


def tune(
    base: BaseModel, target: Target, distil: DistillationSettings | None, data: Path
) -> Iterator[Progress | Notice | dict[str, Any]]:
    """Progress, then a recipe (what its YAML file holds) with its solution for this model."""
    yield from measure(base, target, data)
    damage = known_damage(base.source, base.fingerprint, target, data)
    assert damage is not None
    rules = solve(base.unet, target, damage)
    words = [str(one) for one in target.among]
    recipe: dict[str, Any] = {
        "label": f"Allocated, {target.bits:g} bits",
        "summary": f"{', '.join(words)}, allocated by measured damage to the model's output.",
        "allocate": {"among": words, "bits": target.bits},
        "allocated": {base.fingerprint: [_written(rule) for rule in rules if not rule.optional]},
    }
    yield recipe if distil is None else {**recipe, "distil": asdict(distil)}


def _written(rule: Rule) -> dict[str, str]:
    return {"pattern": rule.pattern, "quantizer": str(rule.quantizer)}


def _measure(base: BaseModel, quantizer: Quantizer, known: Lessons, data: Path) -> Iterator[Progress | Notice]:
    plan = CompressionPlan.resolve(base.unet, tuple(vqdm_rules(quantizer)))
    stats: Mapping[str, LayerStats] = {}
    for event in statistics.gather(base, plan, data) if statistics.calibrated_layers(plan) else ():
        if isinstance(event, StatsFolder):
            stats = event
        else:
            yield event
    candidates: dict[str, Sequence[QuantizedTensor]] = {}
    for result in compress(base.unet, plan, stats):
        candidates[result.record.name] = [result.tensor]
        yield Progress("compress", str(quantizer), result.index + 1, result.total, result.record.name)
    for step in measure_damage(base.unet, candidates, known, base.source.guidance, _PAIRS):
        if isinstance(step, Progress):
            yield step
        else:
            found = {name: values[0] for name, values in step.items()}
            write_bytes(
                _path(base.source, base.fingerprint, quantizer, data), json.dumps({"damage": found}, indent=1).encode()
            )


def _path(source: Source, fingerprint: str, quantizer: Quantizer, data: Path) -> Path:
    """The file of one quantizer's damages on one model; its name changes with all that shapes them."""
    shaping: list[Any] = [fingerprint, quantizer.digest, presets.calibration_prompts(source.tier), source.steps]
    shaping += [source.guidance, _PAIRS, _ALGORITHM]
    if quantizer.calibrated:
        shaping.append(statistics.statistics_key(source, fingerprint))
    digest = hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:24]
    return data / "damages" / f"{digest}.json"


def _read(path: Path) -> Damage | None:
    """None for a file that is not there or not whole: it is measured again."""
    try:
        found = json.loads(path.read_text("utf-8"))["damage"]
        return {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
