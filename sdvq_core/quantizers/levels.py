"""What the quantizers with fixed levels have in common: 2^b values in [-1, 1], one float16 scale per block of a row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdvq_core.bitpack import pack
from sdvq_core.grouping import row_length, to_rows
from sdvq_core.kernels import nearest
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers.base import Quantizer
from sdvq_core.records import LayerStats


@dataclass(frozen=True)
class LevelQuantizer(Quantizer):
    """Base: subclasses say what the levels are. They have the knob block_size."""

    format = "codebook"

    block_size: int

    @abstractmethod
    def levels(self) -> Tensor:
        """float32 [2^b], ascending, within [-1, 1]."""

    @property
    @abstractmethod
    def levels_name(self) -> str:
        """Name of the shared set of levels in a file."""

    def shrinks(self) -> Sequence[float]:
        """Shares of a block's largest weight that are tried as its scale."""
        return (1.0,)

    def layout(self, shape: Sequence[int]) -> dict[str, int | float | str]:
        block, bits = min(self.block_size, row_length(shape)), round(self.nominal_bits)
        return {
            "codebooks": 1,
            "code_bits": bits,
            "group_size": 1,
            "scale_group": block,
            "shared": self.levels_name,
        }

    def quantize(self, weight: Tensor, stats: LayerStats | None = None) -> QuantizedTensor:
        meta = self.layout(weight.shape)
        block = int(meta["scale_group"])
        rows = to_rows(weight.detach().float())  # [O, n]
        padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % block))
        blocks = padded.reshape(len(rows), -1, block)  # [O, S, block]
        levels = self.levels().half().to(rows.device)  # [2^b]
        codes, scale = _search(blocks, levels.float(), self.shrinks())
        codes = codes.reshape(len(rows), -1)[:, : rows.shape[1]].reshape(-1)  # [O * n]
        packed = pack(codes, int(meta["code_bits"]))[None]
        tensors = {"codes": packed, "codebook": levels[None, :, None], "scale": scale}
        return QuantizedTensor(self.format, tuple(weight.shape), tensors, meta)


def _search(blocks: Tensor, levels: Tensor, shrinks: Sequence[float]) -> tuple[Tensor, Tensor]:
    """blocks [O, S, block], levels [K] -> codes of the blocks' shape, and float16 scales [O, S] that lose least."""
    top = blocks.abs().amax(2)  # [O, S]
    least = torch.full_like(top, torch.inf)
    best_codes = torch.zeros(blocks.shape, dtype=torch.int64, device=blocks.device)
    best_scale = top.half()
    for shrink in shrinks:
        scale = (top * shrink).half()
        unit = blocks / scale.float().masked_fill(scale == 0, 1)[..., None]
        codes = nearest(unit.reshape(-1, 1), levels[:, None]).reshape(blocks.shape)
        error = (levels[codes] * scale.float()[..., None] - blocks).square().sum(2)  # [O, S]
        better = error < least
        least = torch.where(better, error, least)
        best_codes = torch.where(better[..., None], codes, best_codes)
        best_scale = torch.where(better, scale, best_scale)
    return best_codes, best_scale
