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

from sdvq_core import statistics
from sdvq_core.allocation import measure_damage
from sdvq_core.compress import compress
from sdvq_core.diffusion.sources import Source
from sdvq_core.distillation import DistillationSettings, Lessons
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan, Rule, vqdm_rules
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers import Quantizer
from sdvq_core.records import LayerStats
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.statistics_crew import StatisticsCrew
from sdvq_core.store import StatsFolder
from sdvq_core.store.images import write_bytes
from sdvq_core.targets import Target, guess, solution_key, solve
from sdvq_core.teaching import lessons

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel

_PAIRS = 40  # of image and step, on which damages are measured
_ALGORITHM = 1  # counts changes of the measurement

Damage = Mapping[str, float]


def known_damage(
    source: Source, fingerprint: str, target: Target, data: Path, calibration: Calibration = DEFAULT
) -> dict[str, list[float]] | None:
    """Damages by layer, in the order of `target.among`, as kept in `data`; None while one is missing."""
    kept = [_read(data / "damages" / _name(source, fingerprint, one, calibration)) for one in target.among]
    known = [damage for damage in kept if damage is not None]
    if len(known) < len(kept):
        return None
    common = set.intersection(*(set(damage) for damage in known))
    return {name: [damage[name] for damage in known] for name in sorted(common)}


def unmeasured(
    source: Source, fingerprint: str, target: Target, data: Path, calibration: Calibration = DEFAULT
) -> list[Quantizer]:
    """The quantizers of `target` whose damages are not kept in `data`."""
    folder = data / "damages"
    return [one for one in target.among if _read(folder / _name(source, fingerprint, one, calibration)) is None]


def measure(
    base: BaseModel,
    target: Target,
    data: Path,
    calibration: Calibration = DEFAULT,
    crew: StatisticsCrew | None = None,
) -> Iterator[Progress | Notice]:
    """Compress every layer by every quantizer of `target` and note the damages that are not kept yet.

    crew: who gathers statistics, by default this process.
    """
    guess(base.unet, target)  # what cannot be reached is said before any work
    known: Lessons | None = None
    for quantizer in unmeasured(base.source, base.fingerprint, target, data, calibration):
        path = data / "damages" / _name(base.source, base.fingerprint, quantizer, calibration)
        if known is None:
            for event in lessons(base, calibration, pairs=_PAIRS):
                if isinstance(event, Progress):
                    yield event
                else:
                    known = event
        assert known is not None
        candidates: dict[str, Sequence[QuantizedTensor]] = {}
        yield from _compress(base, quantizer, candidates, data, calibration, crew)
        for step in measure_damage(base.unet, candidates, known, base.source.guidance, _PAIRS):
            if isinstance(step, Progress):
                yield step
            else:
                found = {name: values[0] for name, values in step.items()}
                write_bytes(path, json.dumps({"damage": found}, indent=1).encode())


def tune(
    base: BaseModel,
    target: Target,
    distil: DistillationSettings | None,
    data: Path,
    calibration: Calibration = DEFAULT,
    crew: StatisticsCrew | None = None,
) -> Iterator[Progress | Notice | dict[str, Any]]:
    """Progress, then a recipe (what its YAML file holds) with its solution for this model."""
    yield from measure(base, target, data, calibration, crew)
    damage = known_damage(base.source, base.fingerprint, target, data, calibration)
    assert damage is not None
    rules = solve(base.unet, target, damage)
    words = [str(one) for one in target.among]
    recipe: dict[str, Any] = {
        "label": f"Allocated, {target.bits:g} bits",
        "summary": f"{', '.join(words)}, allocated by measured damage to the model's output.",
        "allocate": {"among": words, "bits": target.bits},
        "allocated": {solution_key(base.fingerprint, target): [_written(rule) for rule in rules if not rule.optional]},
    }
    yield recipe if distil is None else {**recipe, "distil": asdict(distil)}


def _written(rule: Rule) -> dict[str, str]:
    return {"pattern": rule.pattern, "quantizer": str(rule.quantizer)}


def _compress(
    base: BaseModel,
    quantizer: Quantizer,
    candidates: dict[str, Sequence[QuantizedTensor]],
    data: Path,
    calibration: Calibration,
    crew: StatisticsCrew | None,
) -> Iterator[Progress | Notice]:
    """Every layer by one quantizer, into `candidates`."""
    plan = CompressionPlan.resolve(base.unet, tuple(vqdm_rules(quantizer)))
    stats: Mapping[str, LayerStats] = {}
    for event in _statistics(base, plan, data, calibration, crew) if statistics.calibrated_layers(plan) else ():
        if isinstance(event, StatsFolder):
            stats = event
        else:
            yield event
    for result in compress(base.unet, plan, stats):
        candidates[result.record.name] = [result.tensor]
        yield Progress("compress", str(quantizer), result.index + 1, result.total, result.record.name)


def _statistics(
    base: BaseModel, plan: CompressionPlan, data: Path, calibration: Calibration, crew: StatisticsCrew | None
) -> Iterator[Progress | Notice | StatsFolder]:
    if crew is not None:
        return crew.gather(base.source, base.fingerprint, plan, calibration)
    return statistics.gather(base, plan, data, calibration)


def _name(source: Source, fingerprint: str, quantizer: Quantizer, calibration: Calibration) -> str:
    """The file of one quantizer's damages on one model; it changes with all that shapes them."""
    shaping: list[Any] = [fingerprint, quantizer.digest, statistics.prompts_for(source, calibration), source.steps]
    shaping += [source.guidance, _PAIRS, _ALGORITHM]
    if quantizer.calibrated:
        shaping.append(statistics.statistics_key(source, fingerprint, calibration))
    return f"{hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:24]}.json"


def _read(path: Path) -> Damage | None:
    """None for a file that is not there or not whole: it is measured again."""
    try:
        found = json.loads(path.read_text("utf-8"))["damage"]
        return {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
