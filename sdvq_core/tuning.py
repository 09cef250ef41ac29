"""Makes a recipe for one model: bits allocated by what each layer's compression does to the model's output.

Every layer is compressed by every candidate, the damages are measured (`allocation.py`), and the assignment with the
least damage within a budget becomes the rules of a recipe, which from then on is an arm like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdvq_core import statistics
from sdvq_core.allocation import allocate, measure_damage
from sdvq_core.compress import compress
from sdvq_core.distillation import DistillationSettings, Lessons, record_lessons
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan, Rule, vqdm_rules
from sdvq_core.production import lesson_trajectories
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers import Quantizer
from sdvq_core.records import LayerStats
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.store import StatsFolder, blank_metadata

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel

_PAIRS = 40  # of image and step, on which damages are measured
_TRIES = 8


@dataclass
class _Measured:
    """What is known so far: candidates and their damages by layer, in the order of the quantizers."""

    candidates: dict[str, list[QuantizedTensor]] = field(default_factory=dict)
    damage: Mapping[str, Sequence[float]] = field(default_factory=dict)


def tune(
    base: BaseModel,
    quantizers: Sequence[Quantizer],
    bits: float,
    distil: DistillationSettings | None,
    data: Path,
    calibration: Calibration = DEFAULT,
) -> Iterator[Progress | Notice | dict[str, Any]]:
    """Progress, then a recipe (what its YAML file holds) of at most `bits` per quantized weight, codebooks included."""
    if len(set(quantizers)) < 2:
        raise ConfigError("name two quantizers or more to choose among, such as tcq:bits=2 and tcq:bits=4")
    measured = _Measured()
    yield from _compress(base, quantizers, data, calibration, measured)
    yield from _measure(base, calibration, measured)
    chosen = _within(base, quantizers, measured, bits)
    yield _recipe(base, quantizers, chosen, bits, distil)


def _compress(
    base: BaseModel, quantizers: Sequence[Quantizer], data: Path, calibration: Calibration, measured: _Measured
) -> Iterator[Progress | Notice]:
    """Every layer by every quantizer."""
    plans = [CompressionPlan.resolve(base.unet, tuple(vqdm_rules(quantizer))) for quantizer in quantizers]
    stats: Mapping[str, LayerStats] = {}
    wanting = next((plan for plan in plans if statistics.calibrated_layers(plan)), None)
    for event in statistics.gather(base, wanting, data, calibration) if wanting else ():
        if isinstance(event, StatsFolder):
            stats = event
        else:
            yield event
    for quantizer, plan in zip(quantizers, plans, strict=True):
        used = stats if statistics.calibrated_layers(plan) else None  # as in the artifact
        for result in compress(base.unet, plan, used):
            measured.candidates.setdefault(result.record.name, []).append(result.tensor)
            yield Progress("compress", str(quantizer), result.index + 1, result.total, result.record.name)


def _measure(base: BaseModel, calibration: Calibration, measured: _Measured) -> Iterator[Progress]:
    """The damage of every candidate."""
    guidance = base.source.guidance
    lessons: Lessons | None = None
    for event in record_lessons(base.unet, lesson_trajectories(base, calibration)[:1], 2 if guidance > 1 else 1):
        if isinstance(event, Lessons):
            lessons = event
        else:
            yield event
    assert lessons is not None
    for step in measure_damage(base.unet, measured.candidates, lessons, guidance, _PAIRS):
        if isinstance(step, Progress):
            yield step
        else:
            measured.damage = step


def _within(
    base: BaseModel,
    quantizers: Sequence[Quantizer],
    measured: _Measured,
    bits: float,
) -> dict[str, int]:
    """The best assignment whose ledger, shared codebooks included, stays within `bits`."""
    candidates = measured.candidates
    nbytes = {name: [weight.nbytes for weight in choices] for name, choices in candidates.items()}
    total = sum(math.prod(choices[0].shape) for choices in candidates.values())
    budget = int(total * bits / 8)
    for _ in range(_TRIES):
        chosen = allocate(nbytes, measured.damage, budget)
        ledger = _plan(base, quantizers, chosen).ledger(blank_metadata(len(chosen)))
        over = ledger.tensor_bytes - ledger.parts["kept"] - total * bits / 8
        if over <= 0:
            return chosen
        budget -= math.ceil(over)
    raise ConfigError(f"no assignment of at most {bits:g} bits was found; choose more bits or smaller codebooks")


def _plan(base: BaseModel, quantizers: Sequence[Quantizer], chosen: Mapping[str, int]) -> CompressionPlan:
    rules = [*vqdm_rules(quantizers[0]), *(Rule(name, quantizers[index]) for name, index in chosen.items())]
    return CompressionPlan.resolve(base.unet, tuple(rules))


def _recipe(
    base: BaseModel,
    quantizers: Sequence[Quantizer],
    chosen: Mapping[str, int],
    bits: float,
    distil: DistillationSettings | None,
) -> dict[str, Any]:
    most = max(range(len(quantizers)), key=lambda index: sum(found == index for found in chosen.values()))
    rules = [{"pattern": "*", "quantizer": str(quantizers[most])}]
    rules += [{"pattern": name, "quantizer": str(quantizers[index])} for name, index in chosen.items() if index != most]
    words = ", ".join(map(str, quantizers))
    recipe: dict[str, Any] = {
        "label": f"Allocated, {bits:g} bits",
        "summary": f"{words}, allocated by measured damage to the output of {base.source.name}.",
        "base": base.fingerprint,
        "rules": rules,
    }
    return recipe if distil is None else {**recipe, "distil": asdict(distil)}
