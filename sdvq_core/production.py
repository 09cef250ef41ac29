"""Makes an artifact: statistics where a method asks for them, compression layer by layer, distillation where asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdvq_core import statistics
from sdvq_core.arms import Arm
from sdvq_core.compress import Compression, LayerResult, crew_for
from sdvq_core.crew import Crew
from sdvq_core.diffusion.sources import Source, exact_name
from sdvq_core.distillation import TRAINING, Distilled, distill
from sdvq_core.encoding import Weights, layer_record
from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.pace import Pace
from sdvq_core.plan import CompressionPlan
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import BaseInfo, Curve, LayerRecord, LayerStats
from sdvq_core.sequential import compress_blocks, compress_sequentially, sequential_settings
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.statistics_crew import StatisticsCrew
from sdvq_core.store import Artifact, LayerEntry, Manifest, StatsFolder, Unfinished
from sdvq_core.store.artifact import Kept, StoredTensors, digest
from sdvq_core.teaching import teach
from sdvq_core.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from sdvq_core.diffusion.base_model import BaseModel


ENGINES = ("local", "ray")
_FLOAT_NBYTES = 4


@dataclass(frozen=True)
class Means:
    """With what artifacts are made; no part of any key.

    max_memory: bytes that compressing may take, None for what is free. engine: who gathers statistics and encodes
    layers, this machine (local) or a Ray cluster (ray), to the same bytes.
    """

    max_memory: int | None = None
    engine: str = "local"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.max_memory is not None and self.max_memory < 1:
            raise ConfigError(f"memory for compressing must be 1 byte or more, got {self.max_memory}")


DEFAULT_MEANS = Means()
UNFINISHED = ", unfinished:"  # begins what a recipe says of layers that are missing


@dataclass(frozen=True, eq=False)
class Order:
    """What is to be made, and from what.

    weights: of the UNet, by name, read when they are needed. config: the UNet's. base: loads the whole pipeline, for
    statistics and distillation. data: where statistics are kept. unfinished: what is done already. max_memory: bytes
    that compressing may take, None for what is free. crew: who encodes layers, statistics_crew: who gathers statistics,
    both by default this machine.
    """

    source: Source
    fingerprint: str
    weights: Weights
    config: Mapping[str, Any]
    base: Callable[[], BaseModel]
    plan: CompressionPlan
    arm: Arm
    data: Path
    unfinished: Unfinished
    device: torch.device
    calibration: Calibration = DEFAULT
    max_memory: int | None = None
    crew: Crew | None = None
    statistics_crew: StatisticsCrew | None = None

    @property
    def info(self) -> BaseInfo:
        return BaseInfo(self.source.name, self.fingerprint)


@dataclass
class _Made:
    """What has been made so far. weights: from the disk, except for what a distillation has learnt."""

    weights: Mapping[str, QuantizedTensor]
    kept: Mapping[str, Tensor]
    records: dict[str, LayerRecord] = field(default_factory=dict)
    stats: Mapping[str, LayerStats] = field(default_factory=dict)
    curve: Curve = ()


def produce(order: Order) -> Iterator[Progress | Notice | Artifact]:
    """Progress, then the artifact. Finished layers and looks of a training are kept in `order.unfinished`.

    Weights of the artifact stay on the disk until they are asked for.
    """
    made = _Made(order.unfinished.layers([item.name for item in order.plan.assignments]), order.weights)
    for event in _produce(order, made):
        yield replace(event, arm=order.arm.word) if isinstance(event, Progress) else event
    yield _artifact(order, order.plan, made)


def partial_artifact(order: Order) -> Artifact:
    """What is finished of an artifact in the making: the other layers stay in 16 bits, and are listed.

    SdvqError where no layer is finished.
    """
    found = {item.name: order.unfinished.layer(item.name) for item in order.plan.assignments}
    records = {name: layer[1] for name, layer in found.items() if layer is not None}
    if not records:
        raise SdvqError(
            f"no layer of {order.arm.word} is finished for {order.source.name}; start its compression first"
        )
    made = _Made(order.unfinished.layers(list(records)), order.weights, records)
    return _artifact(order, order.plan.only(set(records), "not compressed yet"), made)


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


def recipe_words(plan: CompressionPlan, arm: Arm, calibration: Calibration, base: BaseInfo) -> str:
    """The arm's word, and what the user decided about calibration if anything depends on that."""
    depends = bool(statistics.calibrated_layers(plan)) or arm.distil is not None
    used = calibration.describe(base) if depends else ""
    return f"{arm.word} with {used}" if used else arm.word


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the numbers."""
    import diffusers

    return {"sdvq": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def _produce(order: Order, made: _Made) -> Iterator[Progress | Notice]:
    calibrated, resumed = bool(statistics.calibrated_layers(order.plan)), False
    _check_memory(order)
    crew = order.crew or crew_for(order.plan, order.device, order.max_memory)
    run = Compression(
        order.plan, order.weights, order.device, crew, order.unfinished.layer, order.unfinished.keep_layer
    )
    for _ in Kept(order.plan.kept, order.weights).values():  # what cannot be stored is said before the work
        pass
    run.check()
    compressed = _in_blocks if calibrated and order.arm.sequential else _at_once
    for event in compressed(order, run, made, calibrated):
        if not isinstance(event, LayerResult):
            yield event
            continue
        made.records[event.record.name] = event.record
        if not event.fresh and not resumed:
            resumed = True
            yield Notice("going on where an earlier run stopped")
    if order.arm.distil is not None:
        yield from _distil(order, made)


def _check_memory(order: Order) -> None:
    """ConfigError where the pipeline itself, which calibration and distillation run, is larger than what is allowed."""
    gathers = order.calibration.statistics is None and order.statistics_crew is None
    runs = gathers and bool(statistics.calibrated_layers(order.plan))
    if order.max_memory is None or order.device.type != "cpu" or not (runs or order.arm.distil):
        return
    needed = _FLOAT_NBYTES * order.plan.weights
    if needed > order.max_memory:
        raise ConfigError(
            f"{order.arm.word} runs the model while it learns from it, {needed / 1e9:.1f} GB in 32 bits, and "
            f"{order.max_memory / 1e9:.1f} GB may be used; allow more, or name an arm without calibration, rvq:bits=3"
        )


def _in_blocks(
    order: Order, run: Compression, made: _Made, calibrated: bool
) -> Iterator[Progress | Notice | LayerResult]:
    """Block after block, each with statistics of its own."""
    for event in _block_after_block(order, run):
        if isinstance(event, StatsFolder):
            made.stats = event
        else:
            yield event


def _at_once(
    order: Order, run: Compression, made: _Made, calibrated: bool
) -> Iterator[Progress | Notice | LayerResult]:
    """Statistics of all layers first, then layer by layer."""
    plan = order.plan
    for event in _statistics(order) if calibrated else ():
        if isinstance(event, StatsFolder):
            made.stats = event
        else:
            yield event
    yield Progress("compress", "", 0, len(plan.assignments), "fitting codebooks")
    pace = Pace(plan)
    for result in run.layers([item.name for item in plan.assignments], made.stats):
        yield result
        yield pace.progress(result)


def _block_after_block(order: Order, run: Compression) -> Iterator[Progress | Notice | LayerResult | StatsFolder]:
    if order.statistics_crew is None:
        return compress_sequentially(order.base(), run, order.data, order.calibration)
    settings, key = sequential_settings(order.source, order.fingerprint, order.plan, order.calibration)
    student = order.statistics_crew.student(order.source, settings, key, order.unfinished)
    return compress_blocks(
        student, order.info, run, settings, order.data / "statistics" / key, order.calibration.memory
    )


def _statistics(order: Order) -> Iterator[Progress | Notice | StatsFolder]:
    if order.statistics_crew is not None:
        return order.statistics_crew.gather(order.source, order.fingerprint, order.plan, order.calibration)
    return statistics.gather(order.base(), order.plan, order.data, order.calibration)


def _distil(order: Order, made: _Made) -> Iterator[Progress]:
    base, settings = order.base(), order.arm.distil
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
    for item in order.plan.assignments:
        weight, tensor = order.weights[f"{item.name}.weight"].to(order.device), found.weights[item.name]
        made.records[item.name] = layer_record(item, weight, tensor, made.stats.get(item.name))


def _artifact(order: Order, plan: CompressionPlan, made: _Made) -> Artifact:
    kept = Kept(plan.kept, made.kept)
    layers = {item.name: LayerEntry(item.quantizer.format, item.shape, item.layout) for item in plan.assignments}
    sha256 = digest(StoredTensors(made.weights, kept))
    made_from = BaseInfo(exact_name(order.source), order.fingerprint)
    manifest = Manifest(made_from, _recipe(order, len(layers)), layers, plan.fallbacks, sha256)
    records = tuple(made.records[item.name] for item in plan.assignments)
    return Artifact(_config(order.config), manifest, made.weights, kept, records, versions(), made.curve)


def _recipe(order: Order, finished: int) -> str:
    """`recipe_words`, and what is missing."""
    words, total = recipe_words(order.plan, order.arm, order.calibration, order.info), len(order.plan.assignments)
    return words + (f"{UNFINISHED} {finished} of {total} layers" if finished < total else "")


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    private = ("_name_or_path", "_use_default_values", "_pre_quantization_dtype", "quantization_config")
    return {name: value for name, value in dict(config).items() if name not in private}
