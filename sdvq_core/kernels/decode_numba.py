"""Packed codes -> rows of weights in one pass, compiled by numba. Imported when first needed.

A codeword of d weights is one vector: M loads and additions, one multiplication by the row's scale, one store, in the
dtype that is asked for. Of codes of one weight each, eight are taken from one word. Codes are read where they lie, as
bytes or as bit fields; nothing is unpacked first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.cpython.unsafe.tuple import tuple_setitem
from torch import Tensor
from torch.nn.functional import pad

from sdvq_core.kernels.compiled import compiled, in_threads, intrinsic, pointer, spread, vector

_set: Any = tuple_setitem
_WORD, _INT = ir.IntType(64), ir.IntType(32)
_LEAST_WORK = 1 << 19  # weights that are worth a thread
_AHEAD = 8  # bytes that may be read after the last: a word of eight codes starts at any byte
_EIGHT = 8
_PLAIN: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever the process' defaults are
_ROOM = {torch.float32: torch.float32, torch.bfloat16: torch.int16}  # numba knows no bfloat16


def codebook_rows(
    codes: Tensor, bits: int, books: Tensor, scale: Tensor, run: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """codes uint8 [M, packed], books [M, K, d], scale [O, S] for runs of `run` weights (0: the row) -> [O, G * d]."""
    return codebook_decoder(codes, bits, books, scale, run, groups)(dtype)


def codebook_decoder(
    codes: Tensor, bits: int, books: Tensor, scale: Tensor, run: int, groups: int
) -> Callable[[torch.dtype], Tensor]:
    """`codebook_rows` of these arrays, for every dtype, as often as it is asked while they stay as they are."""
    count, entries, size = books.shape
    run, factors = run or groups * size, scale.float().contiguous()
    if count == size == 1 and bits <= _EIGHT and groups % _EIGHT == run % _EIGHT == 0:
        tensors = (pad(codes, (0, _AHEAD)).view(-1), books.float().contiguous().view(-1), factors)
        return partial(_decode, _scalars, _arrays(tensors), (bits, run), groups)
    packed = codes if bits == 8 else pad(codes, (0, _AHEAD))
    settings = ((bits, entries, run // size), (tuple(range(size)), (0,) * count))
    tensors = (packed.contiguous(), books.float().contiguous(), factors)
    return partial(_decode, _codebook, _arrays(tensors), settings, groups * size)


def _decode(kernel: Any, arrays: list[Any], settings: tuple[Any, ...], length: int, dtype: torch.dtype) -> Tensor:
    """Rows [O, n] of n = `length`; arrays: codes, codebooks, scales."""
    kept = torch.float32 if kernel is _scalars else _ROOM.get(dtype, torch.float32)
    out = torch.empty(len(arrays[2]), length, dtype=kept, device="cpu")
    _in_rows(kernel, [*arrays, out.numpy()], settings)
    return out.view(dtype) if kept is torch.int16 else out.to(dtype)


def affine_rows(codes: Tensor, bits: int, scale: Tensor, offset: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """codes uint8 [packed], scale and offset [O, S] for runs of `size` weights -> [O, S * size]."""
    out = torch.empty(len(scale), scale.shape[1] * size, **_PLAIN)
    factors, starts = scale.float().contiguous(), offset.float().contiguous()
    kernel = _affine if size % _EIGHT or bits > _EIGHT else _affine_words
    _in_rows(kernel, _arrays((pad(codes, (0, _AHEAD)), factors, starts, out)), (bits,))
    return out.to(dtype)


def trellis_rows(codes: Tensor, bits: int, table: Tensor, places: int, shape: tuple[int, int]) -> Tensor:
    """codes uint8 [packed] of circles of T = `places` codes, table [2^L] -> float32 of `shape` [O, n]."""
    out = torch.empty(shape[0] * shape[1] // places, places, **_PLAIN)  # circles [S, T]
    _in_rows(_trellis, _arrays((pad(codes, (0, _AHEAD)), table.float().contiguous(), out)), (bits,))
    return out.view(-1, shape[0]).T


def _arrays(tensors: tuple[Tensor, ...]) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


def _in_rows(kernel: Any, arrays: list[Any], settings: tuple[Any, ...]) -> None:
    """Call `kernel` with the arrays, every part (first row, end) of the rows of the last, and the settings."""
    rows = len(arrays[-1])
    threads = min(torch.get_num_threads(), rows, arrays[-1].size // _LEAST_WORK)
    if threads <= 1:
        kernel(*arrays, (0, rows), *settings)
        return
    step = -(-rows // threads)
    parts = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    in_threads(kernel, [(*arrays, part, *settings) for part in parts], threads)


@intrinsic
def _write(typing: Any, out: Any, at: Any, books: Any, places: Any, factor: Any, lanes: Any) -> Any:
    """out[at : at + d] = factor * the sum of books[p : p + d] over the tuple `places`, in the type of `out`."""
    width, count = len(lanes), len(places)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, start, source, tops, scale, _ = arguments
        total = None
        for number in range(count):
            entry = pointer(context, builder, signature.args[2], source, builder.extract_value(tops, number), width)
            word = builder.load(entry, align=4)
            total = word if total is None else builder.fadd(total, word)
        total = builder.fmul(total, spread(builder, scale, width))
        if out.dtype == types.float32:
            builder.store(total, pointer(context, builder, signature.args[0], target, start, width), align=4)
        else:
            half = ir.IntType(16)
            room = pointer(context, builder, signature.args[0], target, start, width, half)
            builder.store(_bfloat(builder, total, width), room, align=2)
        return context.get_dummy_value()

    return types.void(out, at, books, places, factor, lanes), generate


def _bfloat(builder: Any, numbers: Any, width: int) -> Any:
    """Finite floats -> the bits of the nearest bfloat16, ties to even."""
    word = vector(width, ir.IntType(32))

    def constant(value: int) -> Any:
        return ir.Constant(word, [value] * width)

    bits = builder.bitcast(numbers, word)
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
    return builder.trunc(builder.lshr(rounded, constant(16)), vector(width, ir.IntType(16)))


@compiled
def _code(packed: Any, number: int, bits: int) -> Any:
    """Code `number` of a stream of `bits`-bit codes."""
    first = number * bits
    place = first >> 3
    word = np.int64(packed[place]) | np.int64(packed[place + 1]) << 8 | np.int64(packed[place + 2]) << 16
    return (word >> (first & 7)) & ((1 << bits) - 1)


@compiled
def _codebook(packed: Any, books: Any, scale: Any, out: Any, part: Any, settings: Any, shape: Any) -> None:
    bits, entries, run = settings
    lanes, zeros = shape
    size, flat = len(lanes), out.reshape(-1)
    groups = out.shape[1] // size
    for row in range(part[0], part[1]):
        for number in range(scale.shape[1]):
            factor = scale[row, number]
            for place in range(row * groups + number * run, row * groups + min((number + 1) * run, groups)):
                places = zeros
                for book in range(len(zeros)):
                    code = np.int64(packed[book, place]) if bits == 8 else _code(packed[book], place, bits)
                    places = _set(places, book, (book * entries + code) * size)
                _write(flat, place * size, books, places, factor, lanes)


@compiled
def _affine(packed: Any, scale: Any, offset: Any, out: Any, part: Any, bits: int) -> None:
    runs = scale.shape[1]
    size = out.shape[1] // runs
    for row in range(part[0], part[1]):
        for run in range(runs):
            factor, start = scale[row, run], offset[row, run]
            first = (row * runs + run) * size
            for place in range(size):
                out[row, run * size + place] = start + factor * np.float32(_code(packed, first + place, bits))


def _eight_codes(context: Any, builder: Any, kind: Any, packed: Any, number: Any, width: Any) -> Any:
    """Codes `number` to `number` + 7 of a stream of `width`-bit codes as a vector; `number` is a multiple of 8."""
    first = builder.mul(builder.lshr(number, _WORD(3)), width)
    room = pointer(context, builder, kind, packed, first, _EIGHT, ir.IntType(8))
    word = spread(builder, builder.load(builder.bitcast(room, _WORD.as_pointer()), align=1), _EIGHT)
    places = ir.Constant(vector(_EIGHT, _WORD), list(range(_EIGHT)))
    shifted = builder.lshr(word, builder.mul(places, spread(builder, width, _EIGHT)))
    mask = builder.sub(builder.shl(_WORD(1), width), _WORD(1))
    return builder.trunc(builder.and_(shifted, spread(builder, mask, _EIGHT)), vector(_EIGHT, _INT))


@intrinsic
def _write_affine(typing: Any, out: Any, packed: Any, at: Any, bits: Any, factor: Any, start: Any) -> Any:
    """out[at : at + 8] = start + factor * the eight codes there; `at` is a multiple of 8."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, codes, number, width, scale, offset = arguments
        plain = _eight_codes(context, builder, signature.args[1], codes, number, width)
        weights = builder.fmul(builder.uitofp(plain, vector(_EIGHT)), spread(builder, scale, _EIGHT))
        weights = builder.fadd(weights, spread(builder, offset, _EIGHT))
        builder.store(weights, pointer(context, builder, signature.args[0], target, number, _EIGHT), align=4)
        return context.get_dummy_value()

    return types.void(out, packed, at, bits, factor, start), generate


@intrinsic
def _write_levels(typing: Any, out: Any, packed: Any, at: Any, bits: Any, levels: Any, factor: Any) -> Any:
    """out[at : at + 8] = factor * the levels of the eight codes there; `at` is a multiple of 8."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, codes, number, width, table, scale = arguments
        plain = _eight_codes(context, builder, signature.args[1], codes, number, width)
        data = cgutils.create_struct_proxy(signature.args[4])(context, builder, table).data
        found = ir.Constant(vector(_EIGHT), ir.Undefined)
        for lane in range(_EIGHT):
            level = builder.load(builder.gep(data, [builder.extract_element(plain, _INT(lane))]))
            found = builder.insert_element(found, level, _INT(lane))
        weights = builder.fmul(found, spread(builder, scale, _EIGHT))
        builder.store(weights, pointer(context, builder, signature.args[0], target, number, _EIGHT), align=4)
        return context.get_dummy_value()

    return types.void(out, packed, at, bits, levels, factor), generate


@compiled
def _scalars(packed: Any, levels: Any, scale: Any, out: Any, part: Any, bits: int, run: int) -> None:
    """`_codebook` of one book of single weights, in float32, whose runs are a multiple of eight long."""
    length, flat = out.shape[1], out.reshape(-1)
    for row in range(part[0], part[1]):
        for number in range(scale.shape[1]):
            for place in range(row * length + number * run, row * length + min((number + 1) * run, length), _EIGHT):
                _write_levels(flat, packed, place, bits, levels, scale[row, number])


@compiled
def _affine_words(packed: Any, scale: Any, offset: Any, out: Any, part: Any, bits: int) -> None:
    """`_affine` of runs that are a multiple of eight weights long."""
    runs, flat = scale.shape[1], out.reshape(-1)
    size = out.shape[1] // runs
    for row in range(part[0], part[1]):
        for run in range(runs):
            first = (row * runs + run) * size
            for place in range(first, first + size, _EIGHT):
                _write_affine(flat, packed, place, bits, scale[row, run], offset[row, run])


@compiled
def _trellis(packed: Any, table: Any, out: Any, part: Any, bits: int) -> None:
    length, mask = out.shape[1], len(table) - 1
    for circle in range(part[0], part[1]):
        first, state = circle * length, 0
        before = 0
        while 1 << (before * bits) < len(table):
            before += 1
        for place in range(-before, 0):
            state = (state << bits | _code(packed, first + place % length, bits)) & mask
        for place in range(length):
            state = (state << bits | _code(packed, first + place, bits)) & mask
            out[circle, place] = table[state]
