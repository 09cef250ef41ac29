"""What a section of the suite `gpu` is given: device, clock, sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sdvq_core.bench.full_size import call_inputs
from sdvq_core.bench.gpu_clock import Clock
from sdvq_core.bench.timing import Row, rows

SUITE = "gpu"


@dataclass(frozen=True)
class Setting:
    """config: of the UNet. cells: latent widths of the large and the small image. rounds: of every case.

    copy_nbytes: of the copy that bandwidths are compared with. scratch_nbytes: that decoded weights rotate through,
    more than an L2 holds. budget: seconds that quantizing all layers with one method may take.
    """

    device: torch.device
    clock: Clock
    config: Mapping[str, Any]
    cells: tuple[int, int] = (128, 64)
    dtype: torch.dtype = torch.bfloat16
    rounds: int = 21
    copy_nbytes: int = 2 << 30
    scratch_nbytes: int = 512 << 20
    budget: float = 120.0

    def copying(self) -> Callable[[], object]:
        """A copy within device memory of `copy_nbytes`, which are read and written."""
        source = torch.empty(self.copy_nbytes, dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def timed(self, cases: Mapping[str, Callable[[], object]], against: str) -> list[Row]:
        """A row for every case, in turns, compared with the case `against`."""
        return rows(SUITE, self.clock.in_turns(cases, self.rounds), against)


def inputs(setting: Setting, cells: int, batch: int) -> dict[str, Any]:
    """What the UNet is called with: `batch` latents of cells x cells, 77 tokens of text."""
    return call_inputs(setting.config, cells, batch, setting.device, setting.dtype)
