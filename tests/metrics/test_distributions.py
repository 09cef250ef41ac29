"""Distances of sets against their definitions: a direct double loop, and the closed form for two Gaussians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdvq_core.errors import ConfigError
from sdvq_core.metrics.distributions import cmmd, frechet


def embeddings(count: int, dim: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    points = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    points[:, 0] += shift
    return torch.nn.functional.normalize(points, dim=-1)


def mmd_by_hand(x: Tensor, y: Tensor) -> float:
    def mean(first: Tensor, second: Tensor) -> float:
        pairs = [math.exp(-float((a - b).square().sum()) / 200) for a in first.double() for b in second.double()]
        return sum(pairs) / len(pairs)

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize("distance", [frechet, cmmd])
@pytest.mark.parametrize("count", [2, 5, 40])
def test_a_set_is_at_distance_zero_of_itself(distance, count):
    assert distance(embeddings(count), embeddings(count)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance", [frechet, cmmd])
def test_distance_grows_with_the_shift_and_ignores_order_and_sides(distance):
    x = embeddings(40)
    near, far = distance(x, embeddings(40, seed=1, shift=0.5)), distance(x, embeddings(40, seed=1, shift=3))
    assert 0 < near < far
    y = embeddings(40, seed=1, shift=3)
    assert distance(y.flip(0), x) == pytest.approx(far, rel=1e-6)


def test_cmmd_equals_a_double_loop():
    x, y = embeddings(7), embeddings(5, seed=1, shift=1)
    assert cmmd(x, y) == pytest.approx(mmd_by_hand(x, y), abs=1e-9)


def test_frechet_of_one_dimension_is_the_closed_form():
    x, y = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    assert frechet(x, y) == pytest.approx((2 - 2) ** 2 + (2 - 1) ** 2)  # means 2 and 2, deviations 2 and 1


def test_too_few_images_have_no_distance():
    assert frechet(embeddings(1), embeddings(5)) is None
    assert cmmd(embeddings(1), embeddings(1)) == 0
    assert cmmd(embeddings(0), embeddings(1)) is None


@pytest.mark.parametrize("distance", [frechet, cmmd])
def test_embeddings_of_two_judges_do_not_compare(distance):
    with pytest.raises(ConfigError, match=r"got \[2, 6\] and \[2, 5\]"):
        distance(embeddings(2), embeddings(2, dim=5))
