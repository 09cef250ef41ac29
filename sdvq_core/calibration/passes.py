"""Fits second moments into a memory budget: several passes over the trajectories, blocks where one alone is too big.

SDXL's largest convolution has 23040 columns: 2.1 GB in float32. All its distinct inputs together take 24 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sdvq_core.calibration.moments import working_nbytes
from sdvq_core.calibration.sharing import SharedInput
from sdvq_core.errors import ConfigError
from sdvq_core.memory import free_nbytes
from sdvq_core.store import BlockLayout
from sdvq_core.store.block_diagonal import layouts

_HEADROOM = 0.5  # share of the free memory that stays free, for activations and whatever else runs


@dataclass(frozen=True)
class Gathering:
    """One distinct input and how its second moment is laid out."""

    source: SharedInput
    layout: BlockLayout


def default_budget(device: torch.device) -> int:
    """Bytes for second moments on `device`: half of what is free."""
    return int(free_nbytes(device) * _HEADROOM)


def split_passes(sources: Sequence[SharedInput], budget: int, units: int = 1) -> list[list[Gathering]]:
    """Passes in the order of the network, each within `budget` bytes; a matrix beyond it is laid out in blocks.

    units: of work in a pass, which need a little more than one does.
    """
    passes: list[list[Gathering]] = []
    used = budget + 1
    for source in sources:
        item = Gathering(source, _layout(source, budget, units))
        nbytes = working_nbytes(item.layout, units)
        if used + nbytes > budget:
            passes.append([])
            used = 0
        passes[-1].append(item)
        used += nbytes
    return passes


def _layout(source: SharedInput, budget: int, units: int) -> BlockLayout:
    kernel_width = source.window.kernel[1] if source.window else 1
    choices = layouts(source.n, source.channels, kernel_width)
    fitting = next((layout for layout in choices if working_nbytes(layout, units) <= budget), None)
    if fitting is None:
        raise ConfigError(
            f"the memory budget for statistics must be {working_nbytes(choices[-1], units)} bytes or more for layer "
            f"{source.layers[0]}, got {budget}"
        )
    return fitting
