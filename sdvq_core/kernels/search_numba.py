"""Beam search over additive codebooks, compiled by numba: 16 scores to a vector. Imported when first needed.

What a hypothesis leaves over, r, scores ``|r|^2 - 2 r.c + |c|^2`` with every entry c of the next codebook; |r|^2 is the
hypothesis' own score, up to |x|^2, which is the same for all. Codebooks are stored as [K / 16, d, 16], so that a
vector of scores is d multiply-adds with neighbours in memory.

On the way every lane's least score is kept. The B-th least of those 16 is a bound that at least B scores meet and few
others do; a second look sorts these few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from torch import Tensor

from sdvq_core.kernels.compiled import compiled, in_threads, intrinsic, pointer, spread

LANES = 16
_WORD, _INT = ir.IntType(64), ir.IntType(32)
_PART = 1 << 12  # points that are worth a thread


def beam_search(points: Tensor, books: Tensor, beam: int) -> Tensor:
    """points float32 [N, d], books float32 [M, K, d] on the CPU, K a multiple of 16 -> codes int64 [M, N]."""
    found = torch.empty(len(points), len(books), dtype=torch.int64, device="cpu")
    threads = max(1, min(torch.get_num_threads(), len(points) // _PART))
    step = max(1, -(-len(points) // threads))
    blocks = (-2 * books).unflatten(1, (-1, LANES)).mT.contiguous()  # [M, K / 16, d, 16]
    norms = books.square().sum(2).contiguous()  # [M, K]
    known = (books.contiguous().numpy(), blocks.view(-1).numpy(), norms.view(-1).numpy())
    jobs = [
        (part.numpy(), known, tuple(range(books.shape[2])), beam, codes.numpy())
        for part, codes in zip(points.contiguous().split(step), found.split(step), strict=True)
    ]
    in_threads(_search, jobs, threads)
    return found.T.contiguous()


@intrinsic
def _score(typing: Any, out: Any, left: Any, known: Any, least: Any, at: Any, start: Any) -> Any:
    """out[h * K + k] = start + the norm of entry k of codebook m - 2 times its product with left[h].

    at: (h, m, K, lanes), lanes a tuple of d numbers; left [B, d]; known: tables [M * d * K] and norms [M * K];
    least: for each of 16 lanes the lowest score so far, and the place in `out` of its vector.
    """
    size = len(at[3])

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, constants, record, places, offset = arguments
        kinds = signature.args
        number, stage, entries = (builder.extract_value(places, place) for place in range(3))
        table, norms = (builder.extract_value(constants, place) for place in range(2))
        first, below = builder.mul(number, entries), builder.mul(stage, entries)
        known_left = pointer(context, builder, kinds[1], source, builder.mul(number, _WORD(size)), size)
        numbers = builder.load(known_left, align=4)
        wide = [spread(builder, builder.extract_element(numbers, _INT(j)), LANES) for j in range(size)]
        lanes = _Lanes(context, builder, kinds[3], record)
        beginning = spread(builder, offset, LANES)
        with cgutils.for_range_slice(builder, _WORD(0), entries, _WORD(LANES)) as (k, _):
            norm = pointer(context, builder, kinds[2][1], norms, builder.add(below, k), LANES)
            total = builder.fadd(beginning, builder.load(norm, align=4))
            place = builder.mul(builder.add(below, k), _WORD(size))
            for value in wide:
                row = builder.load(pointer(context, builder, kinds[2][0], table, place, LANES), align=4)
                total = builder.fadd(total, builder.fmul(value, row, flags=("contract",)), flags=("contract",))
                place = builder.add(place, _WORD(LANES))
            here = builder.add(first, k)
            builder.store(total, pointer(context, builder, kinds[0], target, here, LANES), align=4)
            lanes.see(total, here)
        lanes.store()
        return context.get_dummy_value()

    return types.void(out, left, known, least, at, start), generate


class _Lanes:
    """The least score of each lane and where its vector starts, in registers while a loop runs."""

    def __init__(self, context: Any, builder: Any, kinds: Any, record: Any) -> None:
        self.builder = builder
        low, where = (builder.extract_value(record, place) for place in range(2))
        self.edges = (
            pointer(context, builder, kinds[0], low, _WORD(0), LANES),
            pointer(context, builder, kinds[1], where, _WORD(0), LANES, _INT),
        )
        self.kept = [cgutils.alloca_once_value(builder, builder.load(edge, align=4)) for edge in self.edges]

    def see(self, scores: Any, here: Any) -> None:
        old = [self.builder.load(room) for room in self.kept]
        new = [scores, spread(self.builder, self.builder.trunc(here, _INT), LANES)]
        better = self.builder.fcmp_ordered("<", scores, old[0])
        for room, before, after in zip(self.kept, old, new, strict=True):
            self.builder.store(self.builder.select(better, after, before), room)

    def store(self) -> None:
        for room, edge in zip(self.kept, self.edges, strict=True):
            self.builder.store(self.builder.load(room), edge, align=4)


@intrinsic
def _within(typing: Any, scores: Any, at: Any, limit: Any) -> Any:
    """Bit i: scores[at + i] is at most `limit`; 16 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, start, bound = arguments
        word = builder.load(pointer(context, builder, signature.args[0], source, start, LANES), align=4)
        met = builder.fcmp_ordered("<=", word, spread(builder, bound, LANES))
        return builder.zext(builder.bitcast(met, ir.IntType(LANES)), ir.IntType(32))

    return types.int32(scores, at, limit), generate


@intrinsic
def _lowest_bit(typing: Any, mask: Any) -> Any:
    """Number of the lowest bit that is set in an int32 other than zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), generate


@compiled
def _bound(low: Any, keep: int) -> Any:
    """The `keep`-th least of the lanes' least scores; infinite when there are not so many lanes."""
    if keep > LANES:
        return np.float32(np.inf)
    bound = np.float32(-np.inf)
    for lane in range(LANES):
        below = np.int32(0)
        for other in range(LANES):
            below += np.int32(low[other] < low[lane])
        bound = low[lane] if below < keep and low[lane] > bound else bound
    return bound


@compiled
def _least(scores: Any, length: int, limit: Any, keep: int, values: Any, places: Any) -> Any:
    """Write the `keep` least scores that are at most `limit`, ascending, with their places; return how many, or 1."""
    found, places[0] = 0, 0
    for at in range(0, length, LANES):
        mask = _within(scores, at, limit)
        while mask:
            place = at + _lowest_bit(mask)
            mask &= mask - 1
            value = scores[place]
            if found < keep or value < values[found - 1]:
                to = found if found < keep else found - 1
                while to > 0 and values[to - 1] > value:
                    values[to], places[to] = values[to - 1], places[to - 1]
                    to -= 1
                values[to], places[to] = value, place
                found = min(found + 1, keep)
    return max(found, 1)  # nothing compares with NaN


@compiled
def _first(low: Any, where: Any) -> Any:
    """The place of the lowest score, the first one of equals."""
    best = 0
    for lane in range(1, LANES):
        if low[lane] < low[best] or (low[lane] == low[best] and where[lane] < where[best]):
            best = lane
    return where[best] + best


@compiled
def _copy(source: Any, at: int, target: Any, to: int, length: int) -> None:
    """target[to, :length] = source[at, :length]; numba would take memory for slices, and count their users."""
    for place in range(length):
        target[to, place] = source[at, place]


@compiled
def _search(points: Any, known: Any, lanes: Any, beam: int, codes: Any) -> None:
    """points [N, d], known: books [M, K, d], tables [M * K / 16 * d * 16] and norms [M * K] -> codes [N, M]."""
    books, tables = known[0], known[1:]
    count, entries, size = books.shape
    low, where = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    scores = np.empty(beam * entries, np.float32)
    start, values = np.zeros(beam, np.float32), np.empty(beam, np.float32)
    left, after = np.zeros((beam, size), np.float32), np.zeros((beam, size), np.float32)
    paths, longer = np.zeros((beam, count), np.int64), np.zeros((beam, count), np.int64)
    places = np.zeros(beam, np.int64)
    for row in range(len(codes)):
        width, start[0] = 1, 0
        _copy(points, row, left, 0, size)
        for stage in range(count):
            low[:], where[:] = np.inf, 0
            for number in range(width):
                _score(scores, left, tables, (low, where), (number, stage, entries, lanes), start[number])
            keep = 1 if stage == count - 1 else min(beam, width * entries)
            if keep == 1:
                width, places[0] = 1, _first(low, where)
                values[0] = scores[places[0]]
            else:
                width = _least(scores, width * entries, _bound(low, keep), keep, values, places)
            for number in range(width):
                parent = np.int64(np.uint32(places[number]) // np.uint32(entries))
                entry = places[number] - parent * entries
                _copy(paths, parent, longer, number, stage)
                longer[number, stage], start[number] = entry, values[number]
                for place in range(size):
                    after[number, place] = left[parent, place] - books[stage, entry, place]
            paths, longer, left, after = longer, paths, after, left
        _copy(paths, 0, codes, row, count)
