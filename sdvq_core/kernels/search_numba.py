"""Beam search over additive codebooks, compiled by numba: 16 scores to a vector. Imported when first needed.

What a hypothesis leaves over, r, scores ``|r|^2 - 2 r.c + |c|^2`` with every entry c of the next codebook; |r|^2 is the
hypothesis' own score, up to |x|^2, which is the same for all. Where elements weigh differently, w, the product is that
of [w r, w] and [-2 c, c^2]. Codebooks are stored as [K / 16, d, 16], so that a vector of scores is d multiply-adds with
neighbours in memory.

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
from torch.nn.functional import pad

from sdvq_core.kernels.compiled import compiled, in_threads, intrinsic, pointer, spread

LANES = 16
_WORD, _INT = ir.IntType(64), ir.IntType(32)
_PART = 1 << 12  # points that are worth a thread


def obstacle(codebooks: Tensor, beam: int) -> str:
    """Why codebooks [M, K, d] cannot be searched: they always can."""
    return ""


def beam_search(points: Tensor, books: Tensor, beam: int, weights: Tensor | None = None) -> Tensor:
    """points float32 [N, d], books float32 [M, K, d], weights [N, d] or none, on the CPU -> codes int64 [M, N].

    Codebooks are filled up to whole vectors of entries, the last ones infinitely far away.
    """
    found = torch.empty(len(points), len(books), dtype=torch.int64, device="cpu")
    threads = max(1, min(torch.get_num_threads(), len(points) // _PART))
    step, entries = max(1, -(-len(points) // threads)), books.shape[1]
    known = _tables(pad(books, (0, 0, 0, -entries % LANES)).contiguous(), entries, weights is not None)
    mass = torch.empty(len(points), 0, device="cpu") if weights is None else weights.float().contiguous()
    lanes = (0,) * (books.shape[2] * (1 if weights is None else 2))
    parts = zip(*(whole.split(step) for whole in (points.contiguous(), mass, found)), strict=True)
    jobs = [(part.numpy(), weight.numpy(), known, lanes, beam, codes.numpy()) for part, weight, codes in parts]
    in_threads(_search, jobs, threads)
    return found.T.contiguous().clamp_(max=entries - 1)


def _tables(books: Tensor, entries: int, weighted: bool) -> tuple[Any, Any, Any]:
    """Codebooks [M, K, d]; factors of r, or of [w r, w], flat [M, K / 16, d or 2 d, 16]; norms [M * K]."""
    factors = torch.cat([-2 * books, books.square()], 2) if weighted else -2 * books
    blocks = factors.unflatten(1, (-1, LANES)).mT.contiguous()  # [M, K / 16, d or 2 d, 16]
    norms = books.new_zeros(books.shape[:2]) if weighted else books.square().sum(2)  # [M, K]
    norms[:, entries:] = torch.inf
    return books.numpy(), blocks.view(-1).numpy(), norms.view(-1).numpy()


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
def _weigh(left: Any, mass: Any, row: int, width: int, features: Any) -> None:
    """features[h] = [w * left[h], w] for every hypothesis, w the weights of point `row`."""
    size = left.shape[1]
    for number in range(width):
        for place in range(size):
            features[number, place] = mass[row, place] * left[number, place]
            features[number, size + place] = mass[row, place]


@compiled
def _search(points: Any, mass: Any, known: Any, lanes: Any, beam: int, codes: Any) -> None:
    """points [N, d], mass [N, d] or [N, 0], known: see `_tables` -> codes [N, M]."""
    books, tables = known[0], known[1:]
    count, entries, size = books.shape
    low, where = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    scores = np.empty(beam * entries, np.float32)
    start, values = np.zeros(beam, np.float32), np.empty(beam, np.float32)
    left, after = np.zeros((beam, size), np.float32), np.zeros((beam, size), np.float32)
    weighted = mass.shape[1] > 0
    features = np.zeros((beam, len(lanes)), np.float32)
    paths, longer = np.zeros((beam, count), np.int64), np.zeros((beam, count), np.int64)
    places = np.zeros(beam, np.int64)
    for row in range(len(codes)):
        width, start[0] = 1, 0
        _copy(points, row, left, 0, size)
        for stage in range(count):
            low[:], where[:] = np.inf, 0
            if weighted:
                _weigh(left, mass, row, width, features)
            else:
                features = left
            for number in range(width):
                _score(scores, features, tables, (low, where), (number, stage, entries, lanes), start[number])
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
