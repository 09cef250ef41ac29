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
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdvq_core.calibration import GroupStats, Here, block_groups, collect_sequential
from sdvq_core.compress import Compression, LayerResult
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.pace import Pace
from sdvq_core.plan import CompressionPlan
from sdvq_core.records import BaseInfo
from sdvq_core.statistics import DEFAULT, Calibration, calibrated_layers, settings_for, statistics_key, trajectories
from sdvq_core.store import StatsFolder

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel


def compress_sequentially(
    base: BaseModel, run: Compression, data: Path, calibration: Calibration = DEFAULT
) -> Iterator[Progress | Notice | LayerResult | StatsFolder]:
    """Progress, one result of `run` per layer in the order of the blocks, in the end the statistics of all layers."""
    if calibration.statistics is not None:
        raise ConfigError("a sequential recipe gathers statistics as it goes: leave out the folder of others")
    plan, student, found = run.plan, deepcopy(base.unet), None
    groups, calibrated = block_groups([item.name for item in plan.assignments]), set(calibrated_layers(plan))
    settings = settings_for(base.source, calibration).after(_context(plan))
    key = statistics_key(base.source, base.fingerprint, calibration, settings.context)
    asked = {group: [name for name in names if name in calibrated] for group, names in groups.items()}
    info, here = BaseInfo(base.source.name, base.fingerprint), Here(student, trajectories(base, student, settings))
    folder, pace = data / "statistics" / key, Pace(plan)
    for event in collect_sequential(here, asked, settings, folder, info, calibration.memory):
        if not isinstance(event, GroupStats):
            yield event
            continue
        found = event.stats.only(calibrated)
        for result in run.layers(groups[event.group], found):
            _put(student, result)
            yield result
            yield pace.progress(result)
    assert found is not None
    yield found


def _context(plan: CompressionPlan) -> str:
    """Digest of what runs in the place of the original weights."""
    content = [[item.name, item.quantizer.digest] for item in plan.assignments]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _put(student: nn.Module, result: LayerResult) -> None:
    """Give the layer of `student` the decoded weight."""
    weight = student.get_submodule(result.record.name).weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        weight.copy_(result.tensor.dequantize())
