"""Errors of a decoded weight: |V - R|^2 / |R|^2, and the same seen through the layer's inputs.

With D = V - R as rows [O, n] (grouping.to_rows) and H = E[x x^T] [n, n] the ratio E|D x|^2 / E|R x|^2 is
tr(D H D^T) / tr(R H R^T).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.grouping import to_rows

_BLOCK = 1 << 20  # values at a time


def relative_mse(reference: Tensor, value: Tensor) -> float:
    """|value - reference|^2 / |reference|^2 of two tensors of one shape; 0 / 0 is 0."""
    _same_shape(reference, value)
    error, whole = 0.0, 0.0
    for first, second in zip(_blocks(reference), _blocks(value), strict=True):
        exact = first.float()
        error += _energy(second.float().to(exact.device) - exact)
        whole += _energy(exact)
    return _ratio(error, whole)


def relative_output_mse(weight: Tensor, decoded: Tensor, second_moment: Tensor) -> float:
    """Relative error of the layer's output on inputs of second moment H [n, n], n = weights per output row."""
    _same_shape(weight, decoded)
    rows = to_rows(weight).float()  # [O, n]
    moment = second_moment.to(rows.device, rows.dtype)
    if moment.shape != (rows.shape[1], rows.shape[1]):
        raise ConfigError(f"the second moment must be {[rows.shape[1]] * 2}, got {list(moment.shape)}")
    error = to_rows(decoded).to(rows.device, rows.dtype) - rows  # [O, n]
    return _ratio(_moment_energy(error, moment), _moment_energy(rows, moment))


def _blocks(values: Tensor) -> Sequence[Tensor]:
    """Parts along the first dimension: what lies between stays small."""
    return values.split(max(1, _BLOCK // max(1, values[0].numel()))) if values.ndim and len(values) else [values]


def _energy(values: Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))


def _moment_energy(rows: Tensor, moment: Tensor) -> float:
    """tr(rows H rows^T)."""
    return float(((rows @ moment) * rows).sum(dtype=torch.float64))


def _ratio(error: float, energy: float) -> float:
    if energy == 0:
        return 0.0 if error == 0 else float("inf")
    return error / energy


def _same_shape(reference: Tensor, value: Tensor) -> None:
    if reference.shape != value.shape:
        raise ConfigError(f"tensors must have one shape, got {list(reference.shape)} and {list(value.shape)}")
