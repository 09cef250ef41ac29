"""`viterbi` as a Triton kernel: a program per circle, and then the next one. Imported when first needed.

A state is ``number * 2^(L-k) + o`` where o is what it shares with the states that follow, and ``state >> k`` what it
shared before. A place is one step: every o takes the cheapest of its 2^k states. The costs of a step go through a
program's own room in memory (two rooms by turns, so one barrier a step), for the next one reads them in another order.
Sums and choices are those of the reference, in its order: the same codes.
"""

from __future__ import annotations

import torch
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor
from triton.language import constexpr, tensor  # type: ignore[import-untyped,import-not-found,unused-ignore]

from sdvq_core.kernels.decode_triton import kernel

_PER_WARP = 128  # shared parts o: four of a thread
_PROGRAMS = 10  # per multiprocessor: what registers hold at k = 3 and L = 12, by the compiler's report
_ROOM_NBYTES = 1 << 30  # for the ways back of all programs


def search(target: Tensor, weight: Tensor, table: Tensor, bits: int, window: int) -> Tensor:
    """target, weight float32 [S, T], table [2^L] -> codes uint8 [S, T]; `window` places on either side of the seam."""
    circles, length = target.shape
    codes = torch.empty(target.shape, dtype=torch.uint8, device=target.device)
    if not codes.numel():
        return codes
    shared, steps = len(table) >> bits, max(length, 2 * window)
    programs = max(1, min(circles, _PROGRAMS * _processors(target.device), _ROOM_NBYTES // (steps * shared)))
    costs = torch.empty(programs, 2, shared, dtype=torch.float32, device=target.device)
    back = torch.empty(programs, steps, shared, dtype=torch.uint8, device=target.device)
    warps = min(max(shared // _PER_WARP, 1), 32)
    with torch.cuda.device_of(target):
        _circles[(programs,)](
            target.contiguous(), weight.contiguous(), table.contiguous(), codes, costs, back,
            circles, length, window, (-window) % length, steps,
            BITS=bits, SHARED=shared, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
    return codes


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@kernel
def _forward(  # noqa: PLR0913
    target: tensor, weight: tensor, table: tensor, costs: tensor, back: tensor, cost: tensor,
    first: tensor, count: tensor, length: tensor, BITS: constexpr, SHARED: constexpr,
) -> tensor:  # fmt: skip
    """cost [SHARED] before -> after `count` places of a circle from number `first` on; the ways back are stored."""
    part = tl.arange(0, SHARED)
    for step in range(count):
        place = (first + step) % length
        x, mass = tl.load(target + place), tl.load(weight + place)
        here = costs + (step & 1) * SHARED
        tl.store(here + part, cost)
        tl.debug_barrier()
        way = tl.zeros([SHARED], tl.int32)
        for number in tl.static_range(1 << BITS):
            state = number * SHARED + part
            off = x - tl.load(table + state)
            total = tl.load(here + (state >> BITS)) + mass * off * off
            if number == 0:
                cost = total
            else:
                way = tl.where(total < cost, number, way)
                cost = tl.minimum(total, cost)
        tl.store(back + step * SHARED + part, way.to(tl.uint8))
    tl.debug_barrier()  # the ways back are read by all, and the rooms written again
    return cost


@kernel
def _circles(  # noqa: PLR0913
    target: tensor, weight: tensor, table: tensor, codes: tensor, costs: tensor, back: tensor,
    circles: tensor, length: tensor, window: tensor, before: tensor, steps: tensor,
    BITS: constexpr, SHARED: constexpr,
) -> None:  # fmt: skip
    """Both passes over circle after circle; `before`: the place that lies `window` places before the seam."""
    program = tl.program_id(0)
    part = tl.arange(0, SHARED)
    costs += program * 2 * SHARED
    back += program.to(tl.int64) * steps * SHARED
    for circle in range(program, circles, tl.num_programs(0)):
        start = tl.cast(circle, tl.int64) * length
        free = tl.zeros([SHARED], tl.float32)
        cost = _forward(
            target + start, weight + start, table, costs, back, free, before, 2 * window, length, BITS, SHARED
        )
        seam = tl.argmin(cost, 0)
        for step in range(window):
            way = tl.load(back + (2 * window - 1 - step) * SHARED + seam).to(tl.int32)
            seam = (way * SHARED + seam) >> BITS
        fixed = tl.where(part == seam, 0.0, float("inf"))
        _forward(target + start, weight + start, table, costs, back, fixed, 0, length, length, BITS, SHARED)
        for step in range(length):
            place = length - 1 - step
            state = tl.load(back + place * SHARED + seam).to(tl.int32) * SHARED + seam
            tl.store(codes + start + place, (state & ((1 << BITS) - 1)).to(tl.uint8))
            seam = state >> BITS
