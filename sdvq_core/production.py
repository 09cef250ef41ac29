"""Makes an artifact: statistics where a method asks for them, compression layer by layer, distillation where asked."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdvq_core import statistics
from sdvq_core.arms import Arm
from sdvq_core.calibration import Trajectory
from sdvq_core.compress import LayerResult, compress, layer_record
from sdvq_core.diffusion.sources import Source
from sdvq_core.distillation import Distilled, Lessons, distill, record_lessons
from sdvq_core.errors import SdvqError
from sdvq_core.jobs import Notice, Progress, Sampling
from sdvq_core.plan import CompressionPlan
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import BaseInfo, LayerRecord, LayerStats
from sdvq_core.sequential import compress_sequentially
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.store import Artifact, LayerEntry, Manifest, StatsFolder
from sdvq_core.store.artifact import digest, stored_tensors
from sdvq_core.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from sdvq_core.diffusion.base_model import BaseModel

_BATCH = {"nano": 16}  # prompts sampled together, by tier; one elsewhere
_FIRST_SEED = 600_000_000  # of the lessons: neither calibration's nor one that people choose


@dataclass
class _Made:
    """What has been made so far."""

    weights: dict[str, QuantizedTensor] = field(default_factory=dict)
    records: dict[str, LayerRecord] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def take(self, result: LayerResult) -> None:
        """One more layer."""
        self.weights[result.record.name], self.records[result.record.name] = result.tensor, result.record


def produce(
    base: BaseModel, plan: CompressionPlan, arm: Arm, data: Path, calibration: Calibration = DEFAULT
) -> Iterator[Progress | Notice | Artifact]:
    """Progress, then the artifact of `arm`; `data` is where statistics are kept."""
    made = _Made(kept=base.unet.state_dict())
    for event in _produce(base, plan, arm, data, calibration, made):
        yield replace(event, arm=arm.word) if isinstance(event, Progress) else event
    used = calibration.describe(BaseInfo(base.source.name, base.fingerprint)) if _uses(plan, arm) else ""
    yield _artifact(base, plan, f"{arm.word} with {used}" if used else arm.word, made)


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
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the numbers."""
    import diffusers
    import torch

    return {"sdvq": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def _uses(plan: CompressionPlan, arm: Arm) -> bool:
    """Whether anything of the artifact depends on calibration."""
    return bool(statistics.calibrated_layers(plan)) or arm.distil is not None


def _produce(
    base: BaseModel, plan: CompressionPlan, arm: Arm, data: Path, calibration: Calibration, made: _Made
) -> Iterator[Progress | Notice]:
    stats: Mapping[str, LayerStats] = {}
    calibrated = bool(statistics.calibrated_layers(plan))
    in_blocks = calibrated and arm.sequential
    gather = compress_sequentially if in_blocks else statistics.gather
    for event in gather(base, plan, data, calibration) if calibrated else ():
        if isinstance(event, StatsFolder):
            stats = event
        elif isinstance(event, LayerResult):
            made.take(event)
        else:
            yield event
    if not in_blocks:
        yield from _compress(base, plan, stats, made)
    if arm.distil is not None:
        yield from _distil(base, plan, arm, calibration, stats, made)


def _compress(
    base: BaseModel, plan: CompressionPlan, stats: Mapping[str, LayerStats], made: _Made
) -> Iterator[Progress]:
    total = len(plan.assignments)
    sizes = [item.shape[0] * item.shape[1] for item in plan.assignments]
    start = time.monotonic()
    yield Progress("compress", "", 0, total, "fitting codebooks")
    for result in compress(base.unet, plan, stats):
        made.take(result)
        done = result.index + 1
        left = (time.monotonic() - start) * sum(sizes[done:]) / max(1, sum(sizes[:done]))
        yield Progress("compress", "", done, total, result.record.name, left)


def _distil(
    base: BaseModel,
    plan: CompressionPlan,
    arm: Arm,
    calibration: Calibration,
    stats: Mapping[str, LayerStats],
    made: _Made,
) -> Iterator[Progress]:
    assert arm.distil is not None
    guidance = base.source.guidance
    lessons: Lessons | None = None
    for event in record_lessons(base.unet, lesson_trajectories(base, calibration), 2 if guidance > 1 else 1):
        if isinstance(event, Lessons):
            lessons = event
        else:
            yield event
    assert lessons is not None
    for step in distill(base.unet, made.weights, lessons, guidance, arm.distil):
        if isinstance(step, Progress):
            yield step
        else:
            _take(step, base, plan, stats, made)


def _take(
    found: Distilled, base: BaseModel, plan: CompressionPlan, stats: Mapping[str, LayerStats], made: _Made
) -> None:
    made.weights, made.kept = dict(found.weights), found.kept
    state = base.unet.state_dict()
    for item in plan.assignments:
        weight = state[f"{item.name}.weight"]
        made.records[item.name] = layer_record(item, weight, found.weights[item.name], stats.get(item.name))


def lesson_trajectories(base: BaseModel, calibration: Calibration = DEFAULT) -> Sequence[Trajectory]:
    """The calibration prompts, at other seeds than those of the statistics."""
    from sdvq_core.diffusion.sampling import sample_batch

    source, size = base.source, _BATCH.get(base.source.tier, 1)
    all_of_them = [
        Sampling(prompt, _FIRST_SEED + index, source.steps, source.guidance)
        for index, prompt in enumerate(statistics.prompts_for(source, calibration))
    ]
    batches = [tuple(all_of_them[at : at + size]) for at in range(0, len(all_of_them), size)]
    return [Trajectory(partial(sample_batch, base, base.unet, batch), source.steps) for batch in batches]


def _artifact(base: BaseModel, plan: CompressionPlan, recipe: str, made: _Made) -> Artifact:
    kept = {name: made.kept[name].half().cpu() for name in plan.kept}
    bad = next((name for name, tensor in kept.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        raise SdvqError(
            f"{bad} is NaN, infinite or beyond the range of 16-bit floats; compress a checkpoint that is finite"
        )
    weights = made.weights
    layers = {name: LayerEntry(weight.format, weight.shape, weight.meta) for name, weight in weights.items()}
    info = BaseInfo(base.source.name, base.fingerprint)
    manifest = Manifest(info, recipe, layers, plan.fallbacks, digest(stored_tensors(weights, kept)))
    records = tuple(made.records[item.name] for item in plan.assignments)
    return Artifact(_config(base.unet), manifest, weights, kept, records, versions())


def _config(unet: Any) -> dict[str, Any]:
    private = ("_name_or_path", "_use_default_values", "_pre_quantization_dtype", "quantization_config")
    return {name: value for name, value in dict(unet.config).items() if name not in private}
