"""Suite `full`: a UNet of SDXL's size with random weights, compressed layer by layer as `compress` does it, on the CPU.

Minutes, and 7 GB of memory; not part of a run of all suites.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from sdvq_core.bench.full_size import plan_for, random_unet
from sdvq_core.bench.timing import Row
from sdvq_core.compress import compress
from sdvq_core.quantizers import parse

_WORDS = ("rtn:bits=4", "rvq:bits=3")


def full() -> Iterator[Row]:
    """Seconds of all layers by scalar rounding and by residual codebooks; nothing is written."""
    unet = random_unet(torch.device("cpu"))
    for word in _WORDS:
        plan = plan_for(unet, parse(word))
        weights, start = sum(math.prod(item.shape) for item in plan.assignments), time.perf_counter()
        for result in compress(unet, plan):
            del result
        seconds = time.perf_counter() - start
        case = f"quantize {word}, data-free, all {len(plan.assignments)} layers, {torch.get_num_threads()} threads"
        yield Row("full", case, seconds, seconds, seconds, weights / 1e6 / seconds, "10^6 weights/s")
