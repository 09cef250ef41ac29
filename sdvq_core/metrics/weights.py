"""How far a decoded weight is from the original, in itself and in what the layer puts out."""

from __future__ import annotations

from torch import Tensor

from sdvq_core.grouping import to_rows


def relative_mse(reference: Tensor, value: Tensor) -> float:
    """|v - r|^2 / |r|^2 of two tensors of one shape; 0 for two zeros."""
    reference = reference.float()
    power = reference.square().sum().item()
    return (value.float() - reference).square().sum().item() / power if power else 0.0


def relative_output_mse(weight: Tensor, decoded: Tensor, second_moment: Tensor) -> float:
    """tr(E H E^T) / tr(W H W^T) with E = Wq - W, rows in grouping order and H [n, n] = E[x x^T]."""
    rows = to_rows(weight.float())  # [O, n]
    error = to_rows(decoded.float()) - rows
    power = ((rows @ second_moment) * rows).sum().item()
    return ((error @ second_moment) * error).sum().item() / power if power else 0.0
