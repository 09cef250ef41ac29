"""What decoding takes for a moment: bytes that exist at the most at once, the rows among them, by format and way.

Stated beside the kernels because it follows from their steps: some ways go through float32, copy the codes to have room
behind them, or unpack them first. O rows of n weights, padding included; S scales of a row; M codebooks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdvq_core.bitpack import packed_nbytes
from sdvq_core.kernels.decode import obstacle
from sdvq_core.kernels.ways import way

_FLOAT = 4  # and an unpacked code
_SIGN_NBYTES = 40  # of a column: its hash on the way, in 64 bits
_BLOCK, _BLOCK_NBYTES = 1 << 18, 9  # `bitpack.unpack` takes so many codes at a time; bytes of a bit of them


@dataclass(frozen=True)
class Rows:
    """Rows [O, n] that are decoded to `dtype` on `device`; `copied` of the weights are put together anew after it."""

    rows: int
    length: int
    dtype: torch.dtype
    device: torch.device
    copied: int = 0

    @property
    def weights(self) -> int:
        return self.rows * self.length

    def rounded(self, kept: int = _FLOAT) -> int:
        """Bytes of rows of `kept` bytes a weight, and of what they are rounded to where that is another type."""
        return self.weights * (kept + (self.dtype.itemsize if kept != self.dtype.itemsize else 0))

    def whole(self, nbytes: int) -> int:
        """`nbytes`, or what the copy takes."""
        return max(nbytes, (self.weights + self.copied) * self.dtype.itemsize if self.copied else 0)


def codebook_nbytes(rows: Rows, books: tuple[int, int, int], bits: int, runs: int, run: int) -> int:
    """Codebooks [M, 2^b, d] in float16, scales [O, S = `runs`] for runs of `run` weights (0: the row)."""
    count, entries, size = books
    fast, codes = way(rows.device), rows.weights // size
    if fast == "torch" or obstacle(fast, size, run):
        sums = 3 if count > 1 else 1  # entries, the sum so far and the next one
        scaled = (2 + bool(run)) * _FLOAT * rows.weights  # factors are spread to every weight
        scaled += 0 if rows.dtype == torch.float32 else rows.weights * rows.dtype.itemsize
        decoding = _FLOAT * count * codes + max(sums * _FLOAT * rows.weights, scaled)
        return rows.whole(max(decoding, _unpacking(count, codes, bits)))
    if fast == "triton":
        return rows.whole(rows.weights * rows.dtype.itemsize)
    single = count == size == 1 and bits <= 8 and rows.length % 8 == (run or rows.length) % 8 == 0
    held = _FLOAT * (rows.rows * runs + count * entries * size)
    held += count * packed_nbytes(codes, bits) if single or bits != 8 else 0
    halves = rows.dtype == torch.bfloat16 and not single  # rounded by the kernel
    return held + rows.whole(rows.rounded(2 if halves else _FLOAT))


def affine_nbytes(rows: Rows, bits: int, runs: int) -> int:
    """Scales and offsets [O, S = `runs`] in float16."""
    fast = way(rows.device)
    if fast == "triton":
        return rows.weights * rows.dtype.itemsize
    held = 2 * _FLOAT * rows.rows * runs
    if fast == "torch":
        decoding = held + max(3 * _FLOAT * rows.weights, _FLOAT * rows.weights + rows.rounded())
        return max(decoding, _unpacking(1, rows.weights, bits))
    packed = packed_nbytes(rows.weights, bits)
    return held + max(rows.rounded(), _FLOAT * rows.weights + packed)


def trellis_nbytes(rows: Rows) -> int:
    """Rotated back: what goes in and what comes out."""
    if way(rows.device) == "torch":  # five: codes, older codes, states and what they were
        return 5 * _FLOAT * rows.weights
    return 2 * _FLOAT * rows.weights + _SIGN_NBYTES * rows.length


def _unpacking(books: int, codes: int, bits: int) -> int:
    """The last block of the last of `books` streams of codes, and the blocks before it."""
    block = min(codes, _BLOCK)
    return _FLOAT * (books * codes - block) + block * (_FLOAT if bits == 8 else bits * _BLOCK_NBYTES)
