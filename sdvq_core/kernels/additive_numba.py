"""Sums of codewords, compiled by numba: a codeword of d floats is one vector register. Imported when first needed.

numba's own loops over the d floats become scalar additions, so two intrinsics state the vectors: `_write_sum` loads one
codeword per codebook, adds them in the order of the codebooks and stores the sum; `_add_to_each` does the reverse, for
gradients. `lanes` is a tuple of d numbers and `zeros` one of M: their lengths are part of their types, so every d and M
gets its own machine code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba.core import types
from numba.cpython.unsafe.tuple import tuple_setitem
from torch import Tensor

from sdvq_core.kernels.compiled import compiled, in_threads, intrinsic, pointer

_set: Any = tuple_setitem
_LEAST_WORK = 1 << 17  # codewords that are worth a thread
_PARTS = 4  # partial sums of a gradient, however many threads there are: the same sum on every machine


def decode(codes: Tensor, books: Tensor) -> Tensor:
    """codes int [M, n] below K, books float32 [M, K, d] on the CPU -> [n, d]."""
    out = torch.empty(codes.shape[1], books.shape[2], dtype=torch.float32, device="cpu")
    _spread(_decode, codes, out, _flat(books), books.shape, _threads(codes))
    return out


def scatter(codes: Tensor, values: Tensor, entries: int) -> Tensor:
    """codes int [M, n] below K = entries, values float32 [n, d] -> [M, K, d]: the sum of the values of each entry."""
    count, size = len(codes), values.shape[1]
    found = torch.zeros(_PARTS, count, entries, size, dtype=torch.float32, device="cpu")
    step = max(1, -(-codes.shape[1] // _PARTS))
    jobs = [
        (part.numpy(), value.numpy(), total.view(-1).numpy(), entries, tuple(range(size)), (0,) * count)
        for part, value, total in zip(codes.split(step, 1), values.contiguous().split(step), found, strict=False)
    ]
    in_threads(_scatter, jobs, _threads(codes))
    return found.sum(0)


def _spread(kernel: Any, codes: Tensor, out: Tensor, books: Any, shape: torch.Size, threads: int) -> None:
    step = max(1, -(-codes.shape[1] // threads))
    lanes, zeros = tuple(range(shape[2])), (0,) * shape[0]
    jobs = [
        (part.numpy(), books, rows.numpy(), shape[1], lanes, zeros)
        for part, rows in zip(codes.split(step, 1), out.split(step), strict=True)
    ]
    in_threads(kernel, jobs, len(jobs))


def _flat(books: Tensor) -> Any:
    return books.detach().contiguous().view(-1).numpy()


def _threads(codes: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), codes.numel() // _LEAST_WORK))


@intrinsic
def _write_sum(typing: Any, out: Any, at: Any, books: Any, places: Any, lanes: Any) -> Any:
    """out[at : at + d] = the sum of books[p : p + d] over the tuple `places`; d is the length of `lanes`."""
    width, count = len(lanes), len(places)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, start, source, tops, _ = arguments
        total = None
        for number in range(count):
            place = builder.extract_value(tops, number)
            source_at = pointer(context, builder, signature.args[2], source, place, width)
            word = builder.load(source_at, align=4)
            total = word if total is None else builder.fadd(total, word)
        builder.store(total, pointer(context, builder, signature.args[0], target, start, width), align=4)
        return context.get_dummy_value()

    return types.void(out, at, books, places, lanes), generate


@intrinsic
def _add_to_each(typing: Any, totals: Any, places: Any, values: Any, at: Any, lanes: Any) -> Any:
    """totals[p : p + d] += values[at : at + d] for every p of the tuple `places`; d is the length of `lanes`."""
    width, count = len(lanes), len(places)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, tops, source, start, _ = arguments
        word = builder.load(pointer(context, builder, signature.args[2], source, start, width), align=4)
        for number in range(count):
            place = builder.extract_value(tops, number)
            entry = pointer(context, builder, signature.args[0], target, place, width)
            builder.store(builder.fadd(builder.load(entry, align=4), word), entry, align=4)
        return context.get_dummy_value()

    return types.void(totals, places, values, at, lanes), generate


@compiled
def _decode(codes: Any, books: Any, out: Any, entries: int, lanes: Any, zeros: Any) -> None:
    size, flat = len(lanes), out.reshape(-1)
    for row in range(codes.shape[1]):
        places = zeros
        for number in range(len(zeros)):
            place = (number * entries + np.int64(codes[number, row])) * size
            places = _set(places, number, place)
        _write_sum(flat, row * size, books, places, lanes)


@compiled
def _scatter(codes: Any, values: Any, totals: Any, entries: int, lanes: Any, zeros: Any) -> None:
    size, flat = len(lanes), values.reshape(-1)
    for row in range(codes.shape[1]):
        places = zeros
        for number in range(len(zeros)):
            place = (number * entries + np.int64(codes[number, row])) * size
            places = _set(places, number, place)
        _add_to_each(totals, places, flat, row * size, lanes)
