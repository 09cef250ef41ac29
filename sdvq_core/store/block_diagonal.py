"""How a second moment is laid out: whole, or only blocks on its diagonal when the whole does not fit in memory.

n columns fall into n / span runs, each run into ceil(span / block) blocks [b, b]; the last block of a run is padded
with zeros. Stored are the K blocks [K, b, b]; the entries outside them are taken to be zero (uncorrelated columns).
A whole matrix is span = block = n, K = 1. For a convolution span is a multiple of its input channels or the channels
themselves, so that no block straddles two taps by part (columns are in the order of `grouping.to_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_BLOCK = 8
_FLOAT32_NBYTES = 4


@dataclass(frozen=True)
class BlockLayout:
    """n: columns. span: columns of a run that is cut into blocks. block: columns of a block, at most span."""

    n: int
    span: int
    block: int

    def __post_init__(self) -> None:
        assert self.n % self.span == 0
        assert 1 <= self.block <= self.span

    @classmethod
    def whole(cls, n: int) -> BlockLayout:
        return cls(n, n, n)

    @property
    def is_whole(self) -> bool:
        return self.block == self.n

    @property
    def count(self) -> int:
        """K, the number of blocks."""
        return self.n // self.span * -(-self.span // self.block)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks in float32."""
        return _FLOAT32_NBYTES * self.count * self.block**2

    def tiles(self, rows: Tensor) -> Tensor:
        """rows [R, n] -> the columns of each block [K, R, b]."""
        runs = rows.reshape(len(rows), -1, self.span)  # [R, n / span, span]
        padded = torch.nn.functional.pad(runs, (0, -self.span % self.block))
        return padded.reshape(len(rows), self.count, self.block).transpose(0, 1)  # [K, R, b]

    def dense(self, blocks: Tensor) -> Tensor:
        """blocks [K, b, b] -> [n, n] with zeros outside the blocks; a whole matrix is not copied."""
        if self.is_whole:
            return blocks[0]
        matrix = blocks.new_zeros(self.n, self.n)
        for index, (start, stop) in enumerate(self._ranges()):
            matrix[start:stop, start:stop] = blocks[index, : stop - start, : stop - start]
        return matrix

    def _ranges(self) -> Iterator[tuple[int, int]]:
        for run in range(0, self.n, self.span):
            for start in range(run, run + self.span, self.block):
                yield start, min(start + self.block, run + self.span)


def layouts(n: int, channels: int, kernel_width: int) -> list[BlockLayout]:
    """Layouts of a layer with n = channels * taps columns, the most faithful first.

    The whole; blocks of one row of taps; of one tap; then of 2^k channels at one tap, down to 8. Each takes fewer bytes
    than the one before.
    """
    powers = [2**k for k in range(channels.bit_length(), 2, -1) if MIN_BLOCK <= 2**k < channels]
    coarse = [BlockLayout(n, n, block) for block in (n, channels * kernel_width, channels)]
    found: list[BlockLayout] = []
    for layout in [*coarse, *(BlockLayout(n, channels, block) for block in powers)]:
        if not found or layout.nbytes < found[-1].nbytes:  # padding can make smaller blocks take more
            found.append(layout)
    return found
