"""Walsh-Hadamard transforms of runs of rows, compiled by numba: a run stays in the nearest cache for all its passes.

The first three passes work on eight neighbours at a time, the others on vectors of eight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba.core import types
from torch import Tensor

from sdvq_core.kernels.compiled import compiled, in_threads, intrinsic, pointer

_LANES = 8
_LEAST_WORK = 1 << 18  # numbers that are worth a thread


def transform(rows: Tensor, block: int, root: float) -> Tensor:
    """rows float32 [O, n] on the CPU, runs of `block` entries (a power of two) -> transformed and divided by `root`.

    The additions are those of `hadamard`'s torch code in their order: the same bits.
    """
    out = rows.clone(memory_format=torch.contiguous_format)
    threads = max(1, min(torch.get_num_threads(), out.numel() // _LEAST_WORK))
    runs = out.view(-1, block)
    step = max(1, -(-len(runs) // threads))
    jobs = [(part.reshape(-1).numpy(), block, np.float32(root)) for part in runs.split(step)]
    in_threads(_transform if block >= _LANES else _short, jobs, threads)
    return out


@intrinsic
def _cross(typing: Any, numbers: Any, at: Any, width: Any) -> Any:
    """Eight butterflies: a = numbers[at ...], b = numbers[at + width ...] become a + b and a - b."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, apart = arguments
        kind = signature.args[0]
        places = [pointer(context, builder, kind, array, at, _LANES) for at in (start, builder.add(start, apart))]
        first, second = (builder.load(place, align=4) for place in places)
        builder.store(builder.fadd(first, second), places[0], align=4)
        builder.store(builder.fsub(first, second), places[1], align=4)
        return context.get_dummy_value()

    return types.void(numbers, at, width), generate


@compiled
def _eight(x: Any, at: int) -> None:
    """The passes of width 1, 2 and 4 on eight neighbours."""
    a, b, c, d = x[at] + x[at + 1], x[at] - x[at + 1], x[at + 2] + x[at + 3], x[at + 2] - x[at + 3]
    e, f, g, h = x[at + 4] + x[at + 5], x[at + 4] - x[at + 5], x[at + 6] + x[at + 7], x[at + 6] - x[at + 7]
    a, b, c, d = a + c, b + d, a - c, b - d
    e, f, g, h = e + g, f + h, e - g, f - h
    x[at], x[at + 1], x[at + 2], x[at + 3] = a + e, b + f, c + g, d + h
    x[at + 4], x[at + 5], x[at + 6], x[at + 7] = a - e, b - f, c - g, d - h


@compiled
def _transform(x: Any, block: int, root: Any) -> None:
    for run in range(0, len(x), block):
        for at in range(run, run + block, _LANES):
            _eight(x, at)
        width = _LANES
        while width < block:
            for start in range(run, run + block, 2 * width):
                for at in range(start, start + width, _LANES):
                    _cross(x, at, width)
            width *= 2
        for at in range(run, run + block):
            x[at] /= root


@compiled
def _short(x: Any, block: int, root: Any) -> None:
    """`_transform` of blocks of 1, 2 or 4."""
    for run in range(0, len(x), block):
        width = 1
        while width < block:
            for start in range(run, run + block, 2 * width):
                for at in range(start, start + width):
                    x[at], x[at + width] = x[at] + x[at + width], x[at] - x[at + width]
            width *= 2
        for at in range(run, run + block):
            x[at] /= root
