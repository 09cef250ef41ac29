"""`viterbi` compiled by numba: circles side by side on threads, states in vector registers. Imported when first needed.

`labels` is the tuple of the 2^k branches: its length is part of its type, so every k gets its own machine code with
unrolled loops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdvq_core.kernels.compiled import compiled, in_threads

_LEAST_WORK = 1 << 20  # states times places that are worth a thread


def search(target: Tensor, weight: Tensor, table: Tensor, bits: int, window: int) -> Tensor:
    """target, weight float32 [S, T] on the CPU, table [2^L] -> codes uint8 [S, T]."""
    codes = torch.empty(target.shape, dtype=torch.uint8, device="cpu")
    threads = max(1, min(torch.get_num_threads(), len(target), target.numel() * len(table) // _LEAST_WORK))
    step = max(1, -(-len(target) // threads))
    labels = tuple(range(2**bits))
    parts = [
        (x.contiguous().numpy(), w.contiguous().numpy(), table.numpy(), labels, window, out.numpy())
        for x, w, out in zip(target.split(step), weight.split(step), codes.split(step), strict=True)
    ]
    in_threads(_run, parts, threads)
    return codes


@compiled
def _forward(target: Any, weight: Any, table: Any, labels: Any, cost: Any, total: Any, back: Any) -> None:
    """Update cost [2^(L-k)] over T places and note the ways back [T, 2^(L-k)]; total [2^L] is room to work in."""
    shared = len(cost)
    for place in range(len(target)):
        x, w = target[place], weight[place]
        for o in range(shared):
            base = cost[o]
            for c in range(len(labels)):
                off = x - table[o * len(labels) + c]
                total[o * len(labels) + c] = base + w * off * off
        ways = back[place]
        for o in range(shared):
            best, way = total[o], np.int32(0)
            for number in range(1, len(labels)):
                other = total[number * shared + o]
                way = np.int32(number) if other < best else way
                best = other if other < best else best  # `min` looks after NaN, and is slow
            cost[o] = best
            ways[o] = way


@compiled
def _trace(o: int, back: Any, bits: int, codes: Any) -> int:
    """Write codes [T], last first, from the last shared part o; return the first."""
    for place in range(len(codes) - 1, -1, -1):
        state = back[place, o] * back.shape[1] + o
        codes[place] = state & ((1 << bits) - 1)
        o = state >> bits
    return o


@compiled
def _run(targets: Any, weights: Any, table: Any, labels: Any, window: int, codes: Any) -> None:
    """Both passes over every circle, as `viterbi.viterbi_reference` has it."""
    length, shared = targets.shape[1], len(table) // len(labels)
    bits = 0
    while 1 << bits < len(labels):
        bits += 1
    around = np.arange(-window, window) % length
    cost, total = np.empty(shared, np.float32), np.empty(len(table), np.float32)
    back = np.empty((max(length, 2 * window), shared), np.uint8)
    beyond = np.empty(window, np.uint8)
    for row in range(len(targets)):
        x, w = targets[row], weights[row]
        cost[:] = 0
        _forward(x[around], w[around], table, labels, cost, total, back)
        seam = _trace(np.argmin(cost), back[window:], bits, beyond)
        cost[:] = np.inf
        cost[seam] = 0
        _forward(x, w, table, labels, cost, total, back)
        _trace(seam, back, bits, codes[row])
