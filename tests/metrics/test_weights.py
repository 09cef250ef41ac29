"""Weight errors against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from sdvq_core.errors import ConfigError
from sdvq_core.grouping import to_rows
from sdvq_core.metrics import images
from sdvq_core.metrics.weights import relative_mse, relative_output_mse


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_relative_mse_of_known_errors() -> None:
    weight = random(5, 7)
    assert relative_mse(weight, weight) == 0
    assert relative_mse(weight, torch.zeros(5, 7)) == pytest.approx(1)
    assert relative_mse(weight, weight * 1.5) == pytest.approx(0.25)


def test_scaling_both_changes_nothing() -> None:
    weight, decoded = random(5, 7), random(5, 7, seed=1)
    assert relative_mse(4 * weight, 4 * decoded) == relative_mse(weight, decoded)


def test_blocks_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.randn(50, 7, 3, 3), torch.randn(50, 7, 3, 3)
    whole = relative_mse(first, second)
    monkeypatch.setattr("sdvq_core.metrics.weights._BLOCK", 130)
    assert relative_mse(first, second) == pytest.approx(whole, rel=1e-12)
    assert relative_mse(first[:0], second[:0]) == 0


def test_zero_weights() -> None:
    zero = torch.zeros(3)
    assert relative_mse(zero, zero) == 0
    assert relative_mse(zero, zero + 1) == math.inf


def test_half_precision_is_measured_in_float32() -> None:
    weight = torch.full((4096,), 300.0, dtype=torch.float16)
    assert relative_mse(weight, weight * 0.5) == pytest.approx(0.25)


def test_there_is_one_relative_mse() -> None:
    assert images.relative_mse is relative_mse


@pytest.mark.parametrize("shape", [(5, 8), (6, 3, 3, 3), (4, 5, 1, 1)])
def test_output_error_is_what_the_inputs_see(shape: tuple[int, ...]) -> None:
    """H = X^T X / rows, so the ratio equals |X E^T|^2 / |X W^T|^2 on those very inputs."""
    weight, decoded = random(*shape), random(*shape, seed=1)
    rows, error = to_rows(weight), to_rows(decoded) - to_rows(weight)
    inputs = random(50, rows.shape[1], seed=2)
    expected = float((inputs @ error.T).square().sum() / (inputs @ rows.T).square().sum())
    moment = inputs.T @ inputs / 50
    assert relative_output_mse(weight, decoded, moment) == pytest.approx(expected, rel=1e-4)


def test_white_inputs_see_the_weight_error() -> None:
    weight, decoded = random(5, 8), random(5, 8, seed=1)
    assert relative_output_mse(weight, decoded, torch.eye(8)) == pytest.approx(relative_mse(weight, decoded))


def test_an_error_where_no_input_goes_is_free() -> None:
    weight = random(5, 8)
    decoded = weight.clone()
    decoded[:, 3] += 1
    moment = torch.eye(8)
    moment[3, 3] = 0
    assert relative_output_mse(weight, decoded, moment) == 0


def test_shapes_must_fit() -> None:
    with pytest.raises(ConfigError, match="one shape"):
        relative_mse(random(2, 3), random(3, 2))
    with pytest.raises(ConfigError, match="one shape"):
        relative_output_mse(random(2, 3), random(3, 2), torch.eye(3))
    with pytest.raises(ConfigError, match=r"must be \[27, 27\]"):
        relative_output_mse(random(2, 3, 3, 3), random(2, 3, 3, 3), torch.eye(3))
