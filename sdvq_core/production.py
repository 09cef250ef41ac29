"""Makes an artifact: statistics where a method asks for them, compression layer by layer, distillation where asked."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdvq_core import presets, statistics
from sdvq_core.arms import Arm
from sdvq_core.compress import compress, layer_record
from sdvq_core.diffusion.sources import Source
from sdvq_core.distillation import Distilled, distill
from sdvq_core.errors import SdvqError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import BaseInfo, Curve, LayerRecord, LayerStats
from sdvq_core.store import Artifact, LayerEntry, Manifest, StatsFolder, Unfinished
from sdvq_core.store.artifact import digest, stored_tensors
from sdvq_core.teaching import teach
from sdvq_core.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from sdvq_core.diffusion.base_model import BaseModel


@dataclass
class _Made:
    """What has been made so far."""

    unfinished: Unfinished
    weights: dict[str, QuantizedTensor] = field(default_factory=dict)
    records: dict[str, LayerRecord] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    curve: Curve = ()


def produce(
    base: BaseModel, plan: CompressionPlan, arm: Arm, data: Path, unfinished: Unfinished
) -> Iterator[Progress | Notice | Artifact]:
    """Progress, then the artifact of `arm`. data: where statistics are kept; unfinished: what is done already."""
    made = _Made(unfinished, kept=base.unet.state_dict())
    for event in _produce(base, plan, arm, data, made):
        yield replace(event, arm=arm.word) if isinstance(event, Progress) else event
    yield _artifact(base, plan, arm, made)


def recipe_digest(source: Source, fingerprint: str, plan: CompressionPlan, arm: Arm) -> str:
    """Changes with everything besides the base model that shapes an artifact."""
    recipe: list[Any] = [[item.name, item.quantizer.digest] for item in plan.assignments]
    if statistics.calibrated_layers(plan):
        recipe.append(statistics.statistics_key(source, fingerprint))
    if arm.distil is not None:
        recipe.append([asdict(arm.distil), presets.calibration_prompts(source.tier)])
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the numbers."""
    import diffusers
    import torch

    return {"sdvq": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def _produce(base: BaseModel, plan: CompressionPlan, arm: Arm, data: Path, made: _Made) -> Iterator[Progress | Notice]:
    stats: Mapping[str, LayerStats] = {}
    for event in statistics.gather(base, plan, data) if statistics.calibrated_layers(plan) else ():
        if isinstance(event, StatsFolder):
            stats = event
        else:
            yield event
    yield from _compress(base, plan, stats, made)
    if arm.distil is not None:
        yield from _distil(base, plan, arm, stats, made)


def _compress(
    base: BaseModel, plan: CompressionPlan, stats: Mapping[str, LayerStats], made: _Made
) -> Iterator[Progress | Notice]:
    total = len(plan.assignments)
    sizes = [item.shape[0] * item.shape[1] for item in plan.assignments]
    start = time.monotonic()
    yield Progress("compress", "", 0, total, "fitting codebooks")
    fresh, resumed = 0, False
    for result in compress(base.unet, plan, stats, made.unfinished.layer):
        name, done = result.record.name, result.index + 1
        if result.fresh:
            made.unfinished.keep_layer(result.tensor, result.record)
            fresh += sizes[result.index]
        elif not resumed:
            resumed = True
            yield Notice("going on where an earlier run stopped")
        made.weights[name], made.records[name] = result.tensor, result.record
        left = (time.monotonic() - start) * sum(sizes[done:]) / fresh if fresh else None
        yield Progress("compress", "", done, total, name, left)


def _distil(
    base: BaseModel, plan: CompressionPlan, arm: Arm, stats: Mapping[str, LayerStats], made: _Made
) -> Iterator[Progress]:
    assert arm.distil is not None
    for event in teach(base, arm.distil, made.weights):
        if isinstance(event, Progress):
            yield event
            continue
        for step in distill(base.unet, made.weights, event, base.source.guidance, arm.distil, made.unfinished):
            if isinstance(step, Progress):
                yield step
            else:
                _take(step, base, plan, stats, made)


def _take(
    found: Distilled, base: BaseModel, plan: CompressionPlan, stats: Mapping[str, LayerStats], made: _Made
) -> None:
    made.weights, made.kept, made.curve = dict(found.weights), found.kept, found.curve
    state = base.unet.state_dict()
    for item in plan.assignments:
        weight = state[f"{item.name}.weight"]
        made.records[item.name] = layer_record(item, weight, found.weights[item.name], stats.get(item.name))


def _artifact(base: BaseModel, plan: CompressionPlan, arm: Arm, made: _Made) -> Artifact:
    kept = {name: made.kept[name].half().cpu() for name in plan.kept}
    bad = next((name for name, tensor in kept.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        raise SdvqError(
            f"{bad} is NaN, infinite or beyond the range of 16-bit floats; compress a checkpoint that is finite"
        )
    weights = made.weights
    layers = {name: LayerEntry(weight.format, weight.shape, weight.meta) for name, weight in weights.items()}
    info = BaseInfo(base.source.name, base.fingerprint)
    manifest = Manifest(info, arm.word, layers, plan.fallbacks, digest(stored_tensors(weights, kept)))
    records = tuple(made.records[item.name] for item in plan.assignments)
    return Artifact(_config(base.unet), manifest, weights, kept, records, versions(), made.curve)


def _config(unet: Any) -> dict[str, Any]:
    private = ("_name_or_path", "_use_default_values", "_pre_quantization_dtype", "quantization_config")
    return {name: value for name, value in dict(unet.config).items() if name not in private}
