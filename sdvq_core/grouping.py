"""Weights <-> short vectors, in VQDM's order: a group is d neighbouring input channels *at one tap*.

O output rows, I input channels, T = kh * kw taps, d weights per group, G groups per row. A convolution weight is
reordered (O, kh, kw, I) first; I is padded with zeros to a multiple of d at each tap, so that no group mixes taps.
Source: arXiv 2409.00492, section on convolutions. A Linear is a convolution with one tap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdvq_core.errors import ConfigError


def taps(shape: Sequence[int]) -> int:
    """Number of kernel taps of a weight shape: 1 for Linear [O, I], kh * kw for Conv2d [O, I, kh, kw]."""
    if len(shape) not in (2, 4):
        raise ConfigError(f"a weight has the shape [O, I] or [O, I, kh, kw], got {list(shape)}")
    return math.prod(shape[2:])


def row_length(shape: Sequence[int]) -> int:
    """Weights per output row, I * T."""
    return shape[1] * taps(shape)


def groups_per_row(shape: Sequence[int], d: int) -> int:
    """G = T * ceil(I / d)."""
    return taps(shape) * -(-shape[1] // d)


def to_rows(weight: Tensor) -> Tensor:
    """weight [O, I] or [O, I, kh, kw] -> rows [O, T * I], taps outermost."""
    taps(weight.shape)
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)  # [O, T * I]


def from_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of `to_rows`: rows [O, T * I] -> weight of `shape`; of a convolution a view, channels last in memory."""
    if len(shape) == 2:
        return rows.reshape(*shape)
    out, channels, kh, kw = shape
    return rows.reshape(out, kh, kw, channels).permute(0, 3, 1, 2)  # [O, I, kh, kw]


def to_groups(weight: Tensor, d: int) -> Tensor:
    """weight [O, I] or [O, I, kh, kw] -> groups [O, G, d]."""
    rows, (out, channels) = to_rows(weight), weight.shape[:2]
    tapped = rows.reshape(out, -1, channels)  # [O, T, I]
    padded = torch.nn.functional.pad(tapped, (0, -channels % d))
    return padded.reshape(out, -1, d)  # [O, G, d]


def from_groups(groups: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of `to_groups`: groups [O, G, d] -> weight of `shape`; the padding is dropped."""
    out, channels = shape[:2]
    if groups[0].numel() == row_length(shape):
        return from_rows(groups.reshape(out, -1), shape)
    tapped = groups.reshape(out, taps(shape), -1)[:, :, :channels]  # [O, T, I]
    return from_rows(tapped.reshape(out, -1), shape)
