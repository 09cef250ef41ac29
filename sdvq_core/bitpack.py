"""Codes <-> bytes: a dense little-endian bit stream, any width from 1 to 16.

Bit j of code i is bit ``i * width + j`` of the stream; bit k of the stream is bit ``k % 8`` of byte ``k // 8``.
Codes straddle bytes, so n codes take exactly ``ceil(n * width / 8)`` bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdvq_core.errors import ConfigError

MAX_WIDTH = 16
_BLOCK = 1 << 18  # codes per pass, a multiple of 8: its [n, width] int32 matrix takes at most 16 MiB


def packed_nbytes(count: int, width: int) -> int:
    """Bytes that `count` codes of `width` bits take."""
    return (count * width + 7) // 8


def pack(codes: Tensor, width: int) -> Tensor:
    """codes [n], integers in [0, 2^width) -> uint8 [ceil(n * width / 8)]."""
    _check_width(width)
    codes = codes.reshape(-1)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >> width):
        raise ConfigError(f"codes must lie in 0..{2**width - 1} for a width of {width} bits")
    if width == 8:
        return codes.to(torch.uint8, copy=True)
    blocks = [_pack_block(block, width) for block in codes.to(torch.int32).split(_BLOCK)]
    return torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.uint8)


def unpack(packed: Tensor, width: int, count: int) -> Tensor:
    """uint8 [ceil(count * width / 8)] -> int32 [count]."""
    _check_width(width)
    if packed.numel() != packed_nbytes(count, width):
        raise ConfigError(
            f"{count} codes of {width} bits take {packed_nbytes(count, width)} bytes, got {packed.numel()}"
        )
    if width == 8:
        return packed.to(torch.int32)
    step = _BLOCK * width // 8
    blocks = [_unpack_block(block, width) for block in packed.split(step)]
    codes = torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.int32, device=packed.device)
    return codes[:count]


def _pack_block(codes: Tensor, width: int) -> Tensor:
    shifts = torch.arange(width, dtype=torch.int32, device=codes.device)
    bits = ((codes[:, None] >> shifts) & 1).to(torch.uint8).reshape(-1)  # [n * width]
    missing = -bits.numel() % 8
    bits = torch.nn.functional.pad(bits, (0, missing)).reshape(-1, 8)  # [bytes, 8]
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=codes.device)
    return (bits * place).sum(1, dtype=torch.int32).to(torch.uint8)


def _unpack_block(packed: Tensor, width: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = ((packed[:, None] >> shifts) & 1).reshape(-1)  # [bytes * 8]
    codes = bits[: bits.numel() // width * width].reshape(-1, width)  # [n, width]
    place = torch.tensor([1 << j for j in range(width)], dtype=torch.int32, device=packed.device)
    return (codes * place).sum(1, dtype=torch.int32)


def _check_width(width: int) -> None:
    if not 1 <= width <= MAX_WIDTH:
        raise ConfigError(f"a code is 1 to {MAX_WIDTH} bits wide, got {width}")
