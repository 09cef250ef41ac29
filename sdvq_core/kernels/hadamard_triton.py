"""The rotation of trellis-coded weights as a Triton kernel: all passes of a run in registers. Imported when needed.

A pass adds and subtracts neighbours and puts sums into the first half, differences into the second. Every pass is the
same so, and after log2(b) of them each entry is where it belongs (Pease, J. ACM 15, 1968). Entries are paired as in
the reference, in its order: the same additions, the same bits. Signs are computed from the column, as `scramble` does.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor
from triton.language import constexpr, tensor  # type: ignore[import-untyped,import-not-found,unused-ignore]

from sdvq_core.kernels.decode_triton import kernel

MOST_BLOCK = 1 << 13  # entries of a run: a pass goes through shared memory, 32 KiB
_ENTRIES = 1 << 11  # of a program, in as many runs as it takes
_PER_WARP = 1 << 9  # entries: sixteen of a thread


def rotated(rows: Tensor, block: int, seed: int, signs_first: bool) -> Tensor:
    """rows float32 [O, n], runs of `block` entries -> signs and transform, or transform and signs, [O, n]."""
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    runs = max(1, _ENTRIES // block)
    count = rows.numel() // block
    with torch.cuda.device_of(rows):
        _rotate[(triton.cdiv(count, runs),)](
            rows.contiguous(), out, count, rows.shape[1] // block, (seed << 20) & 0xFFFFFFFF, math.sqrt(block),
            BLOCK=block, PASSES=block.bit_length() - 1, RUNS=runs, FIRST=signs_first,
            num_warps=max(1, min(16, runs * block // _PER_WARP)), enable_fp_fusion=False,
        )  # fmt: skip
    return out


@kernel
def _sign(place: tensor, salt: tensor) -> tensor:
    """+1 or -1 for every column: `hadamard.scramble` of its number plus `salt`, in 32 bits."""
    mixed = (place.to(tl.int64) + salt).to(tl.uint32)
    mixed = (mixed ^ (mixed >> 16)) * tl.full([1], 0x85EBCA6B, tl.uint32)
    mixed = (mixed ^ (mixed >> 13)) * tl.full([1], 0xC2B2AE35, tl.uint32)
    mixed = mixed ^ (mixed >> 16)
    return 1.0 - 2.0 * (mixed >> 31).to(tl.float32)


@kernel
def _rotate(  # noqa: PLR0913
    rows: tensor, out: tensor, count: tensor, together: tensor, salt: tensor, root: tensor,
    BLOCK: constexpr, PASSES: constexpr, RUNS: constexpr, FIRST: constexpr,
) -> None:  # fmt: skip
    """RUNS of `count` runs, `together` of them to a row."""
    run = (tl.program_id(0) * RUNS + tl.arange(0, RUNS))[:, None]
    entry = tl.arange(0, BLOCK)[None, :]
    at = run.to(tl.int64) * BLOCK + entry
    sign = _sign((run % together) * BLOCK + entry, salt)
    x = tl.load(rows + at, mask=run < count, other=0)
    if FIRST:
        x *= sign
    for _ in tl.static_range(PASSES):
        even, odd = tl.split(tl.reshape(x, [RUNS, BLOCK // 2, 2]))
        x = tl.reshape(tl.permute(tl.join(even + odd, even - odd), [0, 2, 1]), [RUNS, BLOCK])
    x = tl.div_rn(x, tl.full([1], root, tl.float32))
    if not FIRST:
        x *= sign
    tl.store(out + at, x, mask=run < count)
