"""Quantizing every layer of SDXL's UNet, random weights, data-free, one layer after another on the GPU.

One layer of every shape is quantized first. Where those foretell more than the budget for all, the total is the sum
over shapes of count times seconds, and the case's name says so.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from sdvq_core.bench.full_size import plan_for, random_unet, weight_of
from sdvq_core.bench.gpu_setting import SUITE, Setting
from sdvq_core.bench.timing import Row
from sdvq_core.crew import Alone
from sdvq_core.encoding import LayerTask, ModuleWeights, SharedSets, encode_layer
from sdvq_core.plan import Assignment
from sdvq_core.quantizers import parse


def quantize_rvq(setting: Setting) -> Iterator[Row]:
    """Residual codebooks, 3x8."""
    yield _quantize(setting, "rvq:bits=3")


def quantize_aq(setting: Setting) -> Iterator[Row]:
    """Additive codebooks, 3x8."""
    yield _quantize(setting, "aq:bits=3")


def quantize_tcq(setting: Setting) -> Iterator[Row]:
    """Trellis codes, 3 bits."""
    yield _quantize(setting, "tcq:bits=3")


def _quantize(setting: Setting, word: str) -> Row:
    unet = random_unet(setting.device, setting.dtype, setting.config)
    plan = plan_for(unet, parse(word))
    weights = ModuleWeights(unet)
    sets = SharedSets(plan, weights, setting.device, Alone())

    def seconds(item: Assignment) -> float:
        setting.clock.wait()
        start = time.perf_counter()
        encode_layer(LayerTask(item, weights, None, sets.codebooks(item), setting.device))
        setting.clock.wait()
        return time.perf_counter() - start

    counts, firsts = Counter(item.shape for item in plan.assignments), _firsts(plan.assignments)
    plan.assignments[0].quantizer.quantize(weight_of(unet, firsts[-1].name))  # compiles; not counted
    spent = {item.shape: seconds(item) for item in firsts}
    foretold, total = sum(counts[shape] * each for shape, each in spent.items()), len(plan.assignments)
    name = f"quantize {word}, data-free, all {total} layers"
    if foretold > setting.budget:
        return Row(SUITE, f"{name}, extrapolated from one layer of each of {len(firsts)} shapes", foretold)
    measured = {item.name for item in firsts}
    rest = sum(seconds(item) for item in plan.assignments if item.name not in measured)
    return Row(SUITE, name, sum(spent.values()) + rest, note=f"{foretold:.1f} s foretold by one layer of every shape")


def _firsts(assignments: Sequence[Assignment]) -> list[Assignment]:
    """One layer of every shape, smallest last."""
    found = {item.shape: item for item in reversed(assignments)}
    return sorted(found.values(), key=lambda item: (-item.shape[0] * item.shape[1], item.name))
