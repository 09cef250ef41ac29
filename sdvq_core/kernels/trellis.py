"""The bit-shift trellis and its computed Gaussian code (QTIP, arXiv 2406.11235; Marcellin and Fischer, 1990).

A state has L bits and a code k bits. Codes lie on a circle of T places (tail-biting: no start state is stored), and

    state[t] = (code[t] + 2^k code[t-1] + 4^k code[t-2] + …) mod 2^L        value[t] = table[state[t]]

so decoding looks at a window of bits and is parallel. Of a state, the low k bits are the branch c; the rest, o, it
shares with its predecessors. The table is a scalar quantizer per o, shifted by a random dither: of 2^k equally likely
slices of a Gaussian, o's branch c takes slice ``c xor hash(o)`` at the quantile ``(slice + dither(o)) / 2^k``, dithers
being a random permutation of ``(i + 1/2) / 2^(L-k)``. Every quantile occurs once, and nothing is stored. (Our own: at
3 bits and L = 12 it loses 6 % less than the paper's independent Gaussian values.)
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding

from sdvq_core.kernels.hadamard import scramble

_LABELS, _DITHERS = 1 << 24, 2 << 24  # salts of the two hashes; permanent, because files exist


@lru_cache(maxsize=16)
def gaussian_code(bits: int, state_bits: int) -> Tensor:
    """The table [2^L] of k = bits, L = state_bits: unit variance, values of float16 in float32, on the CPU."""
    shared = torch.arange(2 ** (state_bits - bits))  # o
    dither = torch.empty(len(shared), dtype=torch.float64)
    dither[scramble(shared + _DITHERS).argsort()] = (torch.arange(len(shared), dtype=torch.float64) + 0.5) / len(shared)
    slices = torch.arange(2**bits) ^ (scramble(shared + _LABELS) & (2**bits - 1))[:, None]  # [o, c]
    table = torch.special.ndtri((slices + dither[:, None]) / 2**bits).reshape(-1)  # [2^L]
    rounded: Tensor = (table / table.square().mean().sqrt()).half()
    return rounded.float()


@lru_cache(maxsize=16)
def code_table(bits: int, state_bits: int, device: torch.device) -> Tensor:
    """`gaussian_code` on `device`: copied there once, so that decoding waits for nothing and fits into a CUDA graph."""
    return gaussian_code(bits, state_bits).to(device)


def trellis_decode(codes: Tensor, bits: int, table: Tensor) -> Tensor:
    """codes int [S, T], circles of T codes, and the table [2^L] -> values [S, T]."""
    state = codes.to(torch.int32)
    older, reach = state, bits
    while 2**reach < len(table):
        older = older.roll(1, 1)
        state = state | (older << reach)
        reach += bits
    return embedding(state & (len(table) - 1), table[:, None])[..., 0]
