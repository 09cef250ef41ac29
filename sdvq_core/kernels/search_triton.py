"""Beam search over additive codebooks as a Triton kernel: a warp per point, scores in registers. Imported when needed.

A hypothesis is a path, the codes so far in one int64, and dead where there is none. Each stage scores all entries c of
the next codebook, ``|r|^2 - 2 r.c + |c|^2`` with r = point - path, and takes the `beam` lowest one after another. Up to
ties and rounding the choice of the reference. Elements may weigh differently in every point: ``sum w (r - c)^2``.
N points, M codebooks of K = 2^b entries of d numbers, B hypotheses.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor
from torch.nn.functional import pad
from triton.language import constexpr, tensor  # type: ignore[import-untyped,import-not-found,unused-ignore]

from sdvq_core.kernels.decode_triton import kernel

_POINTS = 16  # of a program, one after another
_MOST_SCORES = 1 << 12  # of a warp: 128 registers of a thread
_MOST_BITS, _MOST_SIZE = 62, 32  # of a path; of an entry, whose numbers are unrolled


def obstacle(codebooks: Tensor, beam: int) -> str:
    """Why the kernel cannot take these codebooks [M, K, d] and B = `beam`, or ""."""
    books, entries, size = codebooks.shape
    bits = _bits(entries)
    if books * bits > _MOST_BITS:
        return f"{books} codes of {bits} bits, where a path has {_MOST_BITS}"
    if size > _MOST_SIZE:
        return f"entries of {size} weights, where a search takes {_MOST_SIZE}"
    hypotheses = 1 if books == 1 else triton.next_power_of_2(beam)
    if hypotheses << bits > _MOST_SCORES:
        return f"{1 << bits} entries for each of {hypotheses} hypotheses, where a search holds {_MOST_SCORES} scores"
    return ""


def beam_search(points: Tensor, codebooks: Tensor, beam: int, weights: Tensor | None = None) -> Tensor:
    """points float32 [N, d], codebooks float32 [M, K, d], weights [N, d] or none -> codes int64 [M, N].

    Codebooks are filled up to 2^b entries, the last ones infinitely far away.
    """
    books, entries, size = codebooks.shape
    codes = torch.empty(books, len(points), dtype=torch.int64, device=points.device)
    beam, bits = 1 if books == 1 else beam, _bits(entries)
    full = pad(codebooks, (0, 0, 0, (1 << bits) - entries)).contiguous()
    norms = full.new_zeros(full.shape[:2]) if weights is not None else full.square().sum(2)
    norms[:, entries:] = torch.inf
    with torch.cuda.device_of(points):
        _beams[(triton.cdiv(len(points), _POINTS),)](
            points.contiguous(), None if weights is None else weights.float().contiguous(), full,
            full.mT.contiguous(), norms, codes,
            len(points), BOOKS=books, BITS=bits, D=size, BEAM=beam,
            LANES=triton.next_power_of_2(beam), POINTS=_POINTS, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    return codes if entries == 1 << bits else codes.clamp_(max=entries - 1)


def _bits(entries: int) -> int:
    """Of a code of so many entries, one at least."""
    return max(1, (entries - 1).bit_length())


@kernel
def _beams(  # noqa: PLR0913
    points: tensor, mass: tensor, books: tensor, turned: tensor, norms: tensor, codes: tensor, count: tensor,
    BOOKS: constexpr, BITS: constexpr, D: constexpr, BEAM: constexpr, LANES: constexpr, POINTS: constexpr,
) -> None:  # fmt: skip
    """turned: codebooks [M, d, K]. norms [M, K]: squares of their entries, or 0 where mass [N, d] weighs them."""
    K: constexpr = 1 << BITS
    hypothesis, entry = tl.arange(0, LANES), tl.arange(0, K)
    for turn in range(POINTS):
        point = tl.minimum(tl.program_id(0) * POINTS + turn, count - 1).to(tl.int64)  # the last one again and again
        path = tl.zeros([LANES], tl.int64)
        dead = tl.where(hypothesis == 0, 0.0, float("inf"))
        for stage in tl.static_range(BOOKS):
            own = dead  # |r|^2, [B]
            score = tl.zeros([LANES, K], tl.float32) + tl.load(norms + stage * K + entry)[None, :]
            for j in tl.static_range(D):
                left = tl.load(points + point * D + j) + tl.zeros([LANES], tl.float32)
                for earlier in tl.static_range(stage):
                    code = (path >> (BITS * earlier)) & (K - 1)
                    left -= tl.load(books + (earlier * K + code) * D + j)
                row = tl.load(turned + (stage * D + j) * K + entry)
                heavy = left
                if mass is not None:
                    weight = tl.load(mass + point * D + j)
                    heavy = left * weight
                    score += (weight * row * row)[None, :]
                own += heavy * left
                score += (-2 * heavy)[:, None] * row[None, :]
            score += own[:, None]
            taken = tl.zeros([LANES], tl.int64)
            dead = tl.full([LANES], float("inf"), tl.float32)
            for pick in range(1 if stage == BOOKS - 1 else BEAM):
                least, where = tl.min(score, 1, return_indices=True)  # [B]
                low, parent = tl.min(least, 0, return_indices=True)
                chosen = tl.sum(tl.where(hypothesis == parent, where, 0), 0)
                longer = tl.sum(tl.where(hypothesis == parent, path, 0), 0) | (chosen.to(tl.int64) << (BITS * stage))
                taken = tl.where(hypothesis == pick, longer, taken)
                dead = tl.where(hypothesis == pick, tl.where(low < float("inf"), 0.0, float("inf")), dead)
                used = (hypothesis == parent)[:, None] & (entry == chosen)[None, :]
                score = tl.where(used, float("inf"), score)
            path = taken
        best = tl.sum(tl.where(hypothesis == 0, path, 0), 0)
        for stage in tl.static_range(BOOKS):
            tl.store(codes + tl.cast(count, tl.int64) * stage + point, (best >> (BITS * stage)) & (K - 1))
