"""Packed codes -> rows of weights on a GPU, one launch per layer: Triton kernels. Imported when first needed.

Codes are read where they lie (`bitpack`), sums are in float32, and a weight is rounded once, to the wanted dtype: the
numbers of the torch reference. Three shapes of work: a codeword of d weights is one vector load and one vector store
(`_codewords`); eight codes of one weight each are one word of `bits` bytes (`_scalars`); a trellis state is a window of
bits (`_states`). O rows, G groups of d weights, M codebooks, S runs of weights with a scale of their own in a row.
Places are int32: a layer has fewer than 2^30 weights. Block sizes are reasoned, not measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor
from triton.language import constexpr, tensor  # type: ignore[import-untyped,import-not-found,unused-ignore]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SMALL = torch.float8_e4m3fn  # for `kernels.fp8`
MOST_BITS = {"codebook": 16, "linear": 16, "affine": 8, "trellis": 4}  # of a code, by kind of kernel
_MOST_WEIGHTS = 2**30 - 2**16  # of 16 bits: every byte has an int32 number, those of a last block's missing ones too
_CAPABILITY = (8, 0)  # of a GPU: the oldest with bfloat16
_SMALL_CAPABILITY = (8, 9)  # the oldest with float8
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}  # multiply, then add: torch's rounding
_CODEWORDS = 256  # of a program: two for each of its 128 threads, 4 KiB of float16 at d = 8
_WORDS = 256  # of eight codes of a program: 16 bytes of float16 each
_COLUMNS, _ROWS = 32, 64  # of a program's trellis tile: loads run down a column, stores along 32 weights of a row


def unsupported(kind: str, device: torch.device, dtype: torch.dtype, bits: int, weights: int) -> str | None:
    """Why a layer of `weights` weights cannot be decoded here by the kernel of `kind` (see MOST_BITS), or None."""
    if dtype not in DTYPES and (dtype != _SMALL or kind != "codebook"):
        return f"{dtype} is none of {', '.join(map(str, DTYPES))}"
    if not 1 <= bits <= MOST_BITS[kind]:
        return f"codes of {bits} bits, where {kind} takes 1 to {MOST_BITS[kind]}"
    if weights > _MOST_WEIGHTS:
        return f"{weights} weights, where {_MOST_WEIGHTS} is the most"
    return _unsuitable(device, _CAPABILITY if dtype in DTYPES else _SMALL_CAPABILITY)


def _unsuitable(device: torch.device, capability: tuple[int, int]) -> str | None:
    if device.type == "cpu" and _INTERPRETED:
        return None
    if device.type != "cuda":
        return f"the weights are on {device.type}, Triton needs cuda"
    have = torch.cuda.get_device_capability(device)
    needed = ".".join(map(str, capability))
    return None if have >= capability else f"a GPU of compute capability {have[0]}.{have[1]}, where {needed} is needed"


def codebook_rows(  # noqa: PLR0913 - what the format stores
    codes: Tensor,
    bits: int,
    books: Tensor,
    scale: Tensor,
    scale_group: int,
    groups: int,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """codes uint8 [M, packed], books [M, 2^bits, d], scale [O, S] -> scale * sum of codewords, [O, G * d].

    G = `groups`, d a power of two; a scale covers `scale_group` weights, or its row when that is 0.
    """
    rows, size = len(scale), books.shape[2]
    assert books.shape[:2] == (len(codes), 2**bits)
    codes, books, scale = dense(codes, books, scale)
    out = _output(out, (rows, groups * size), dtype, codes)
    if size == len(books) == 1 and bits <= MOST_BITS["affine"]:
        _launch_scalars(codes, bits, books, scale, None, scale_group or groups, out)
        return out
    grid = (triton.cdiv(rows * groups, _CODEWORDS),)
    with torch.cuda.device_of(out):
        _codewords[grid](
            codes, books, scale, out, rows * groups, groups, scale.shape[1], codes.shape[1],
            BITS=bits, SPAN=span(bits), BOOKS=len(books), D=size, RUN=scale_group, BLOCK=_CODEWORDS, **LAUNCH,
        )  # fmt: skip
    return out


def affine_rows(
    codes: Tensor,
    bits: int,
    scale: Tensor,
    offset: Tensor,
    size: int,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """codes uint8 [packed] of at most 8 bits, scale and offset [O, S] -> offset + scale * code, [O, S * size]."""
    codes, scale, offset = dense(codes, scale, offset)
    out = _output(out, (len(scale), scale.shape[1] * size), dtype, codes)
    _launch_scalars(codes, bits, None, scale, offset, size, out)
    return out


def trellis_rows(
    codes: Tensor,
    bits: int,
    table: Tensor,
    places: int,
    shape: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """codes uint8 [packed], circles of T = `places`, table [2^L] -> values [O, n] = `shape`, still rotated.

    What `trellis_decode` and `from_circles` give: the stream runs down the columns. T divides O or is a multiple of it.
    """
    rows, columns = shape
    length = -(-(len(table).bit_length() - 1) // bits)  # codes that make a state
    assert rows % places == 0 or places % rows == 0
    assert length <= places
    codes, table = dense(codes, table)
    out = _output(out, shape, dtype, codes)
    grid = (triton.cdiv(columns, _COLUMNS), triton.cdiv(rows, _ROWS))
    with torch.cuda.device_of(out):
        _states[grid](
            codes, table, out, rows, columns, places, max(1, places // rows), codes.numel(),
            BITS=bits, LENGTH=length, SPAN=span(bits, length), STATES=len(table),
            COLUMNS=_COLUMNS, ROWS=_ROWS, **LAUNCH,
        )  # fmt: skip
    return out


def dense(*arrays: Tensor) -> list[Tensor]:
    """The arrays as their shapes lie in memory, all on one device."""
    assert all(array.device == arrays[0].device for array in arrays)
    return [array.contiguous() for array in arrays]


def span(bits: int, codes: int = 1) -> int:
    """Bytes that neighbouring codes may touch, wherever they start."""
    latest = 8 - math.gcd(8, bits)  # bit of a byte at which a code may start
    return -(-(latest + codes * bits) // 8)


def kernel(function: Callable[..., Any]) -> Any:
    """Decorator: a Triton kernel, or a function that kernels call."""
    return triton.jit(function)


def _output(out: Tensor | None, shape: tuple[int, int], dtype: torch.dtype, codes: Tensor) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=dtype, device=codes.device)
    assert out.shape == shape
    assert out.dtype == dtype
    assert out.is_contiguous()
    return out


def _launch_scalars(
    codes: Tensor, bits: int, table: Tensor | None, scale: Tensor, offset: Tensor | None, run: int, out: Tensor
) -> None:
    """Fill out [O, n]; codes of one weight each, looked up in a table where there is one, in runs of `run` weights."""
    rows, length = out.shape
    grid = (triton.cdiv(out.numel(), 8 * _WORDS),)
    with torch.cuda.device_of(out):
        _scalars[grid](
            codes, table, scale, offset, out, rows * length, length, scale.shape[1], run, codes.numel(),
            BITS=bits, EVEN=length % 8 == run % 8 == 0, BLOCK=_WORDS, **LAUNCH,
        )  # fmt: skip


@kernel
def code_at(codes: tensor, place: tensor, nbytes: tensor, BITS: constexpr, SPAN: constexpr) -> tensor:
    """Codes number `place` of a packed stream; 0 behind its last byte."""
    bit = (place & 7) * BITS
    byte = (place >> 3) * BITS + (bit >> 3)
    return (_bytes(codes, byte, byte < nbytes, nbytes, SPAN) >> (bit & 7)) & ((1 << BITS) - 1)


@kernel
def _bytes(codes: tensor, first: tensor, wanted: tensor, nbytes: tensor, SPAN: constexpr) -> tensor:
    """SPAN bytes from number `first` on as one little-endian number; those outside of the stream are 0."""
    found = tl.zeros_like(first)
    for number in tl.static_range(SPAN):
        at = first + number
        byte = tl.load(codes + at, mask=wanted & (at >= 0) & (at < nbytes), other=0)
        found |= byte.to(tl.int32) << (8 * number)
    return found


@kernel
def _codewords(  # noqa: PLR0913
    codes: tensor, books: tensor, scale: tensor, out: tensor,
    count: tensor, groups: tensor, runs: tensor, nbytes: tensor,
    BITS: constexpr, SPAN: constexpr, BOOKS: constexpr, D: constexpr, RUN: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """One codeword per thread and turn, [BLOCK, D]; `count` of them, `nbytes` per codebook."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, D)[None, :]
    inside = place < count
    total = tl.zeros([BLOCK, D], tl.float32)
    for _ in tl.static_range(BOOKS):
        code = code_at(codes, place, nbytes, BITS, SPAN)
        total += tl.load(books + code[:, None] * D + lane).to(tl.float32)
        codes += nbytes
        books += (1 << BITS) * D
    row = place // groups
    if RUN == 0:
        total *= tl.load(scale + row, mask=inside, other=0).to(tl.float32)[:, None]
    else:
        run = ((place - row * groups)[:, None] * D + lane) // RUN
        total *= tl.load(scale + row[:, None] * runs + run, mask=inside[:, None], other=0).to(tl.float32)
    tl.store(out + place[:, None] * D + lane, total.to(out.dtype.element_ty), mask=inside[:, None])


@kernel
def _scalars(  # noqa: PLR0913
    codes: tensor, table: tensor, scale: tensor, offset: tensor, out: tensor,
    count: tensor, length: tensor, runs: tensor, run: tensor, nbytes: tensor,
    BITS: constexpr, EVEN: constexpr, BLOCK: constexpr,
) -> None:  # fmt: skip
    """Eight codes per thread and turn, [BLOCK, 8]; EVEN: no run ends among them. `length` weights per row."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, 8)[None, :]
    packed = tl.zeros([BLOCK], tl.int64 if BITS > 4 else tl.int32)
    for number in tl.static_range(BITS):
        at = word * BITS + number
        packed |= tl.load(codes + at, mask=at < nbytes, other=0).to(packed.dtype) << (8 * number)
    code = (packed[:, None] >> (lane * BITS)).to(tl.int32) & ((1 << BITS) - 1)
    value = (code if table is None else tl.load(table + code)).to(tl.float32)
    place = word[:, None] * 8 + lane
    start = word[:, None] * 8 if EVEN else place  # [BLOCK, 1] or [BLOCK, 8]
    row = start // length
    at = row * runs + (start - row * length) // run
    value *= tl.load(scale + at, mask=start < count, other=0).to(tl.float32)
    if offset is not None:
        value += tl.load(offset + at, mask=start < count, other=0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < count)


@kernel
def _states(  # noqa: PLR0913
    codes: tensor, table: tensor, out: tensor,
    rows: tensor, columns: tensor, places: tensor, together: tensor, nbytes: tensor,
    BITS: constexpr, LENGTH: constexpr, SPAN: constexpr, STATES: constexpr, COLUMNS: constexpr, ROWS: constexpr,
) -> None:  # fmt: skip
    """A tile [COLUMNS, ROWS] of the stream, stored transposed; a circle is `together` columns or part of one.

    A window holds the LENGTH codes of a state, the oldest lowest; at the start of a circle the oldest are at its end.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[None, :]
    inside = (column < columns) & (row < rows)
    top = column.to(tl.int64) * rows * BITS  # bit at which a column starts
    bit = (top & 7).to(tl.int32) + (row - (LENGTH - 1)) * BITS
    byte = (top >> 3).to(tl.int32) + (bit >> 3)
    window = _bytes(codes, byte, inside, nbytes, SPAN) >> (bit & 7)
    missing = tl.maximum(LENGTH - 1 - (column % together) * rows - row % places, 0)  # codes from the circle's end
    bit += (places * BITS) & 7
    byte = (top >> 3).to(tl.int32) + ((places * BITS) >> 3) + (bit >> 3)
    end = _bytes(codes, byte, inside & (missing > 0), nbytes, SPAN) >> (bit & 7)
    oldest = (1 << (missing * BITS)) - 1
    window = (window & ~oldest) | (end & oldest)
    state = tl.zeros_like(window)
    for age in tl.static_range(LENGTH):
        code = (window >> ((LENGTH - 1 - age) * BITS)) & ((1 << BITS) - 1)
        state |= code << (age * BITS)
    value = tl.load(table + (state & (STATES - 1)))
    at = row.to(tl.int64) * columns + column
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
