"""Tail-biting Viterbi search: the circle of codes whose decoded values lie nearest to a target.

Two passes (QTIP, arXiv 2406.11235, section 4): the first searches a window around the seam of the circle with free ends
and fixes the L - k bits that the last state hands to the first; the second is exact among the circles that pass there.
Costs are ``weight (target - value)^2``, summed in float32; of equal ones the lowest state wins. Numba on the CPU,
Triton on a CUDA GPU, torch where they cannot be had: the same additions in the same order, so the same codes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from sdvq_core.kernels.ways import attempt, warn_obstacle, way

_WINDOW = 64  # places on either side of the seam that the first pass sees, more than once on a short circle
_CHUNK_NBYTES = 64 << 20


def viterbi(target: Tensor, weight: Tensor, table: Tensor, bits: int) -> Tensor:
    """target, weight float32 [S, T], table [2^L] -> codes uint8 [S, T] of S circles."""
    fast = way(target.device)
    found = None
    if fast != "torch":
        kernel = (fast, "viterbi", str(target.device), bits, len(table))
        found = attempt(kernel, lambda: _compiled(fast)(target, weight, table, bits, _WINDOW))
    else:
        warn_obstacle(target.device)
    return viterbi_reference(target, weight, table, bits) if found is None else found


def _compiled(way: str) -> Callable[..., Tensor]:
    search: Callable[..., Tensor] = import_module(f"sdvq_core.kernels.viterbi_{way}").search
    return search


def viterbi_reference(target: Tensor, weight: Tensor, table: Tensor, bits: int) -> Tensor:
    """`viterbi` in plain torch, on any device: all circles of a chunk side by side, place after place."""
    table = table.to(target)
    row_nbytes = 16 * len(table) + target.shape[1] * (len(table) >> bits)
    step = max(1, _CHUNK_NBYTES // row_nbytes)
    parts = zip(target.split(step), weight.split(step), strict=True)
    return torch.cat([_search(x, w, table, bits) for x, w in parts])


def _search(target: Tensor, weight: Tensor, table: Tensor, bits: int) -> Tensor:
    around = torch.arange(-_WINDOW, _WINDOW, device=target.device) % target.shape[1]
    free = target.new_zeros(len(target), len(table) >> bits)
    cost, back = _forward(target[:, around], weight[:, around], table, free)
    _, seam = _trace(cost.argmin(1), back[_WINDOW:], bits)
    start = torch.full_like(cost, torch.inf).scatter_(1, seam[:, None], 0.0)
    _, back = _forward(target, weight, table, start)
    return _trace(seam, back, bits)[0]


def _forward(target: Tensor, weight: Tensor, table: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """cost [S, 2^(L-k)] of the shared parts before -> after T places, and the ways back uint8 [T, S, 2^(L-k)]."""
    shared = cost.shape[1]
    back = torch.zeros(target.shape[1], *cost.shape, dtype=torch.uint8, device=cost.device)
    for place, (x, w) in enumerate(zip(target.T, weight.T, strict=True)):
        off = x[:, None] - table  # [S, 2^L]
        total = cost.repeat_interleave(len(table) // shared, 1) + w[:, None] * off * off  # [S, 2^L]
        branches = total.reshape(len(cost), -1, shared).unbind(1)  # by the k oldest bits, each [S, 2^(L-k)]
        cost = branches[0]
        for number, branch in enumerate(branches[1:], 1):
            back[place].masked_fill_(branch < cost, number)
            cost = torch.minimum(branch, cost)
    return cost, back


def _trace(shared: Tensor, back: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Last shared part [S] and the ways back [T, S, 2^(L-k)] -> codes uint8 [S, T] and the first shared part [S]."""
    codes = torch.empty(back.shape[1], len(back), dtype=torch.uint8, device=back.device)
    for place in reversed(range(len(back))):
        state = back[place].gather(1, shared[:, None])[:, 0].long() * back.shape[2] + shared  # [S]
        codes[:, place] = (state & (2**bits - 1)).to(torch.uint8)
        shared = state >> bits
    return codes, shared
