"""Compression block after block, as VQDM does it: a layer's statistics come from a model whose earlier blocks are done.

The inputs that a layer gets in the end are those that the compressed earlier blocks make, errors included; statistics
gathered that way let it work on them. The target stays the original weight (arXiv 2409.00492). It costs one pass over
the calibration prompts per block group (seven on SDXL) in the place of one in all, and a second copy of the UNet.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdvq_core.calibration import GroupStats, block_groups, collect_sequential
from sdvq_core.compress import Finished, LayerResult, compress
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.plan import CompressionPlan
from sdvq_core.records import BaseInfo, LayerStats
from sdvq_core.statistics import DEFAULT, Calibration, calibrated_layers, settings_for, statistics_key, trajectories
from sdvq_core.store import StatsFolder

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel


def compress_sequentially(
    base: BaseModel,
    plan: CompressionPlan,
    data: Path,
    calibration: Calibration = DEFAULT,
    done: Finished = lambda name: None,
) -> Iterator[Progress | Notice | LayerResult | StatsFolder]:
    """Progress, one result per layer in the order of the blocks, and at the end the statistics of all layers.

    done: gives the layers that an earlier run has finished.
    """
    if calibration.statistics is not None:
        raise ConfigError("a sequential recipe gathers statistics as it goes: leave out the folder of others")
    groups, calibrated = block_groups([item.name for item in plan.assignments]), set(calibrated_layers(plan))
    student, stats = deepcopy(base.unet), _Current()
    order = [name for names in groups.values() for name in names]
    results = compress(base.unet, plan, stats, order, done)  # asks for a layer's statistics when its turn comes
    settings = settings_for(base.source, calibration).after(_context(plan))
    key = statistics_key(base.source, base.fingerprint, calibration, settings.context)
    asked = {group: [name for name in names if name in calibrated] for group, names in groups.items()}
    info, runs = BaseInfo(base.source.name, base.fingerprint), trajectories(base, student, settings)
    folder, clock = data / "statistics" / key, _Clock(plan)
    for event in collect_sequential(student, asked, runs, settings, folder, info, calibration.memory):
        if not isinstance(event, GroupStats):
            yield event
            continue
        stats.folder = event.stats.only(calibrated)
        for result in islice(results, len(groups[event.group])):
            _put(student, result)
            yield result
            yield clock.progress(result)
    assert isinstance(stats.folder, StatsFolder)
    yield stats.folder


class _Current(Mapping[str, LayerStats]):
    """The statistics that are there now; matrices stay on disk until a layer asks for its own."""

    def __init__(self) -> None:
        self.folder: Mapping[str, LayerStats] = {}

    def __getitem__(self, name: str) -> LayerStats:
        return self.folder[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.folder)

    def __len__(self) -> int:
        return len(self.folder)


class _Clock:
    """Progress of the layers, with the time left judged by all that was spent, statistics included."""

    def __init__(self, plan: CompressionPlan) -> None:
        self.sizes = {item.name: item.shape[0] * item.shape[1] for item in plan.assignments}
        self.total, self.done, self.start = sum(self.sizes.values()), 0, time.monotonic()

    def progress(self, result: LayerResult) -> Progress:
        """After one more layer."""
        self.done += self.sizes[result.record.name]
        left = (time.monotonic() - self.start) * (self.total - self.done) / self.done
        return Progress("compress", "", result.index + 1, result.total, result.record.name, left)


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
