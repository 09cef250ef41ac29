"""Makes an artifact: statistics where a method asks for them, compression layer by layer, distillation where asked."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdvq_core import statistics
from sdvq_core.arms import Arm
from sdvq_core.compress import LayerResult, compress, layer_record
from sdvq_core.diffusion.sources import Source
from sdvq_core.distillation import TRAINING, Distilled, distill
from sdvq_core.errors import SdvqError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import BaseInfo, Curve, LayerRecord, LayerStats
from sdvq_core.sequential import compress_sequentially
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.store import Artifact, LayerEntry, Manifest, StatsFolder, Unfinished
from sdvq_core.store.artifact import digest, stored_tensors
from sdvq_core.teaching import teach
from sdvq_core.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from sdvq_core.diffusion.base_model import BaseModel


@dataclass(frozen=True, eq=False)
class Order:
    """What is to be made, and from what. data: where statistics are kept; unfinished: what is done already."""

    base: BaseModel
    plan: CompressionPlan
    arm: Arm
    data: Path
    unfinished: Unfinished
    calibration: Calibration = DEFAULT


@dataclass
class _Made:
    """What has been made so far."""

    weights: dict[str, QuantizedTensor] = field(default_factory=dict)
    records: dict[str, LayerRecord] = field(default_factory=dict)
    stats: Mapping[str, LayerStats] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    curve: Curve = ()


def produce(order: Order) -> Iterator[Progress | Notice | Artifact]:
    """Progress, then the artifact. Finished layers and looks of a training are kept in `order.unfinished`."""
    made = _Made(kept=order.base.unet.state_dict())
    for event in _produce(order, made):
        yield replace(event, arm=order.arm.word) if isinstance(event, Progress) else event
    yield _artifact(order, made)


def recipe_digest(
    source: Source, fingerprint: str, plan: CompressionPlan, arm: Arm, calibration: Calibration = DEFAULT
) -> str:
    """Changes with everything besides the base model that shapes an artifact."""
    recipe: list[Any] = [[item.name, item.quantizer.digest] for item in plan.assignments]
    if statistics.calibrated_layers(plan):
        recipe.append(statistics.statistics_key(source, fingerprint, calibration))
        recipe += ["sequential"] if arm.sequential else []
    if arm.distil is not None:
        recipe.append([asdict(arm.distil), statistics.prompts_for(source, calibration)])
        recipe.append([TRAINING, source.steps, source.guidance, source.resolution, source.tier])
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the numbers."""
    import diffusers
    import torch

    return {"sdvq": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def _produce(order: Order, made: _Made) -> Iterator[Progress | Notice]:
    calibrated, resumed = bool(statistics.calibrated_layers(order.plan)), False
    compressed = _in_blocks if calibrated and order.arm.sequential else _at_once
    for event in compressed(order, made, calibrated):
        if not isinstance(event, LayerResult):
            yield event
            continue
        made.weights[event.record.name], made.records[event.record.name] = event.tensor, event.record
        if event.fresh:
            order.unfinished.keep_layer(event.tensor, event.record)
        elif not resumed:
            resumed = True
            yield Notice("going on where an earlier run stopped")
    if order.arm.distil is not None:
        yield from _distil(order, made)


def _in_blocks(order: Order, made: _Made, calibrated: bool) -> Iterator[Progress | Notice | LayerResult]:
    """Block after block, each with statistics of its own."""
    done = order.unfinished.layer
    for event in compress_sequentially(order.base, order.plan, order.data, order.calibration, done):
        if isinstance(event, StatsFolder):
            made.stats = event
        else:
            yield event


def _at_once(order: Order, made: _Made, calibrated: bool) -> Iterator[Progress | Notice | LayerResult]:
    """Statistics of all layers first, then layer by layer."""
    base, plan = order.base, order.plan
    for event in statistics.gather(base, plan, order.data, order.calibration) if calibrated else ():
        if isinstance(event, StatsFolder):
            made.stats = event
        else:
            yield event
    sizes, fresh = [item.shape[0] * item.shape[1] for item in plan.assignments], 0
    start = time.monotonic()
    yield Progress("compress", "", 0, len(sizes), "fitting codebooks")
    for result in compress(base.unet, plan, made.stats, done=order.unfinished.layer):
        yield result
        done = result.index + 1
        fresh += sizes[result.index] if result.fresh else 0
        left = (time.monotonic() - start) * sum(sizes[done:]) / fresh if fresh else None
        yield Progress("compress", "", done, len(sizes), result.record.name, left)


def _distil(order: Order, made: _Made) -> Iterator[Progress]:
    base, settings = order.base, order.arm.distil
    assert settings is not None
    for event in teach(base, settings, made.weights, order.calibration):
        if isinstance(event, Progress):
            yield event
            continue
        for step in distill(base.unet, made.weights, event, base.source.guidance, settings, order.unfinished):
            if isinstance(step, Progress):
                yield step
            else:
                _take(step, order, made)


def _take(found: Distilled, order: Order, made: _Made) -> None:
    made.weights, made.kept, made.curve = dict(found.weights), found.kept, found.curve
    state = order.base.unet.state_dict()
    for item in order.plan.assignments:
        weight = state[f"{item.name}.weight"]
        made.records[item.name] = layer_record(item, weight, found.weights[item.name], made.stats.get(item.name))


def _artifact(order: Order, made: _Made) -> Artifact:
    base, plan = order.base, order.plan
    kept = {name: made.kept[name].half().cpu() for name in plan.kept}
    bad = next((name for name, tensor in kept.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        raise SdvqError(
            f"{bad} is NaN, infinite or beyond the range of 16-bit floats; compress a checkpoint that is finite"
        )
    weights = made.weights
    layers = {name: LayerEntry(weight.format, weight.shape, weight.meta) for name, weight in weights.items()}
    info = BaseInfo(base.source.name, base.fingerprint)
    manifest = Manifest(info, _recipe(order, info), layers, plan.fallbacks, digest(stored_tensors(weights, kept)))
    records = tuple(made.records[item.name] for item in plan.assignments)
    return Artifact(_config(base.unet), manifest, weights, kept, records, versions(), made.curve)


def _recipe(order: Order, info: BaseInfo) -> str:
    """The arm's word, and what the user decided about calibration if anything depends on that."""
    depends = bool(statistics.calibrated_layers(order.plan)) or order.arm.distil is not None
    used = order.calibration.describe(info) if depends else ""
    return f"{order.arm.word} with {used}" if used else order.arm.word


def _config(unet: Any) -> dict[str, Any]:
    private = ("_name_or_path", "_use_default_values", "_pre_quantization_dtype", "quantization_config")
    return {name: value for name, value in dict(unet.config).items() if name not in private}
