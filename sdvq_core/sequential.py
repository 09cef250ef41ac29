"""Compression block after block, as VQDM does it: a layer's statistics come from a model whose earlier blocks are done.

The inputs that a layer gets in the end are those that the compressed earlier blocks make, errors included; statistics
gathered that way let it work on them. The target stays the original weight (arXiv 2409.00492). It costs one pass over
the calibration prompts per block group (seven on SDXL) in the place of one in all, and a second copy of the UNet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from sdvq_core.calibration import CalibrationSettings, Gatherer, GroupStats, Here, block_groups, collect_sequential
from sdvq_core.compress import Compression, LayerResult
from sdvq_core.diffusion.sources import Source
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.pace import Pace
from sdvq_core.plan import CompressionPlan
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import BaseInfo
from sdvq_core.statistics import DEFAULT, Calibration, calibrated_layers, settings_for, statistics_key, trajectories
from sdvq_core.store import StatsFolder

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel


class Student(Gatherer, Protocol):
    """Gathers statistics on a model that takes compressed layers in."""

    def put(self, result: LayerResult) -> None:
        """From now on this layer's weight is the decoded one."""
        ...


class _Copy(Here):
    """A copy of the original in this process."""

    def put(self, result: LayerResult) -> None:
        put_weight(self.model, result.record.name, result.tensor)


def compress_sequentially(
    base: BaseModel, run: Compression, data: Path, calibration: Calibration = DEFAULT
) -> Iterator[Progress | Notice | LayerResult | StatsFolder]:
    """`compress_blocks` by this process."""
    settings, key = sequential_settings(base.source, base.fingerprint, run.plan, calibration)
    unet = deepcopy(base.unet)
    student = _Copy(unet, trajectories(base, unet, settings))
    info = BaseInfo(base.source.name, base.fingerprint)
    yield from compress_blocks(student, info, run, settings, data / "statistics" / key, calibration.memory)


def compress_blocks(
    student: Student,
    info: BaseInfo,
    run: Compression,
    settings: CalibrationSettings,
    folder: Path,
    budget: int | None = None,
) -> Iterator[Progress | Notice | LayerResult | StatsFolder]:
    """Progress, one result of `run` per layer in the order of the blocks, in the end the statistics of all layers."""
    found, pace = None, Pace(run.plan)
    groups, calibrated = block_groups([item.name for item in run.plan.assignments]), set(calibrated_layers(run.plan))
    asked = {group: [name for name in names if name in calibrated] for group, names in groups.items()}
    for event in collect_sequential(student, asked, settings, folder, info, budget):
        if not isinstance(event, GroupStats):
            yield event
            continue
        found = event.stats.only(calibrated)
        for result in run.layers(groups[event.group], found):
            student.put(result)
            yield result
            yield pace.progress(result)
    assert found is not None
    yield found


def sequential_settings(
    source: Source, fingerprint: str, plan: CompressionPlan, calibration: Calibration = DEFAULT
) -> tuple[CalibrationSettings, str]:
    """(settings, name of the folder) of statistics that belong to this plan alone."""
    if calibration.statistics is not None:
        raise ConfigError("a sequential recipe gathers statistics as it goes: leave out the folder of others")
    context = _context(plan)
    settings = settings_for(source, calibration).after(context)
    return settings, statistics_key(source, fingerprint, calibration, context)


def put_weight(model: nn.Module, name: str, tensor: QuantizedTensor) -> None:
    """Give layer `name` of `model` the decoded weight."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        weight.copy_(tensor.dequantize())


def _context(plan: CompressionPlan) -> str:
    """Digest of what runs in the place of the original weights."""
    content = [[item.name, item.quantizer.digest] for item in plan.assignments]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
