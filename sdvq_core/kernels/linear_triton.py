"""x @ W.T with W decoded inside the product, for few rows of x: W never exists in memory. A Triton kernel.

A program decodes a tile of W, [outputs, groups * d], multiplies it with a tile of x on the matrix units and goes on
along the row; the scale of a row of W comes after the sum. W is decoded once per tile of x, so that this pays for few
rows only. O outputs, G groups of d weights, R rows of x. Imported when first needed; tile sizes are not measured.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor
from triton.language import constexpr, tensor  # type: ignore[import-untyped,import-not-found,unused-ignore]

from sdvq_core.kernels.decode_triton import LAUNCH, code_at, dense, kernel, span

_OUTPUTS = 64  # rows of W of a program: one warp group's share of a matrix instruction
_DEEP = 64  # weights of a row that are decoded at a time, 128 bytes of float16
_LEAST = 16  # rows of x of a program: what a matrix instruction takes
_MOST = {torch.float32: 32, torch.float16: 64, torch.bfloat16: 64}  # what registers hold, by the compiler's report
_STAGES = 2  # tiles on their way: with three, M = 8 needs more shared memory than most GPUs have


def codebook_linear(
    x: Tensor, codes: Tensor, bits: int, books: Tensor, scale: Tensor, groups: int, bias: Tensor | None = None
) -> Tensor:
    """x [R, G * d], codes uint8 [M, packed], books [M, 2^bits, d], scale [O, 1], bias [O] -> x @ W.T + bias, [R, O].

    G = `groups`, d a power of two. In the dtype of x, sums in float32; codewords are rounded to the dtype of x.
    """
    rows, size = len(x), books.shape[2]
    assert books.shape[:2] == (len(codes), 2**bits)
    assert scale.shape[1] == 1
    assert x.shape[1] == groups * size
    x, codes, books, scale, *_ = dense(x, codes, books, scale, *([] if bias is None else [bias]))
    out = torch.empty(rows, len(scale), dtype=x.dtype, device=x.device)
    tile = min(max(triton.next_power_of_2(rows), _LEAST), _MOST[x.dtype])
    grid = (triton.cdiv(len(scale), _OUTPUTS), triton.cdiv(rows, tile))
    with torch.cuda.device_of(x):
        _product[grid](
            x, codes, books, scale, bias, out, rows, len(scale), groups, codes.shape[1],
            BITS=bits, SPAN=span(bits), BOOKS=len(books), D=size,
            ROWS=tile, OUTPUTS=_OUTPUTS, GROUPS=max(_DEEP // size, 1), num_stages=_STAGES, **LAUNCH,
        )  # fmt: skip
    return out


@kernel
def _product(  # noqa: PLR0913
    x: tensor, codes: tensor, books: tensor, scale: tensor, bias: tensor, out: tensor,
    rows: tensor, outputs: tensor, groups: tensor, nbytes: tensor,
    BITS: constexpr, SPAN: constexpr, BOOKS: constexpr, D: constexpr,
    ROWS: constexpr, OUTPUTS: constexpr, GROUPS: constexpr,
) -> None:  # fmt: skip
    """A tile [OUTPUTS, ROWS] of W @ x.T; `nbytes` per codebook."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[None, :]
    lane = tl.arange(0, D)[None, None, :]
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(0, groups, GROUPS):
        place = output[:, None] * groups + start + tl.arange(0, GROUPS)[None, :]  # beyond the row x is 0
        words = tl.zeros([OUTPUTS, GROUPS, D], tl.float32)
        for book in tl.static_range(BOOKS):
            code = code_at(codes + tl.cast(nbytes, tl.int64) * book, place, nbytes, BITS, SPAN) + book * (1 << BITS)
            words += tl.load(books + code[:, :, None] * D + lane).to(tl.float32)
        column = start * D + tl.arange(0, GROUPS * D)[:, None]
        inside = (column < groups * D) & (row < rows)
        inputs = tl.load(x + row.to(tl.int64) * (groups * D) + column, mask=inside, other=0)  # [GROUPS * D, ROWS]
        weights = tl.reshape(words, [OUTPUTS, GROUPS * D]).to(inputs.dtype)
        total = tl.dot(weights, inputs, total, input_precision="ieee")
    total *= tl.load(scale + output, mask=output < outputs, other=0).to(tl.float32)[:, None]
    if bias is not None:
        total += tl.load(bias + output, mask=output < outputs, other=0).to(tl.float32)[:, None]
    at = row.to(tl.int64) * outputs + output[:, None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(output < outputs)[:, None] & (row < rows))
