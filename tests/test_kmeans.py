"""Weighted k-means against slow references."""

import itertools

import pytest
import torch

from sdvq_core.kernels import nearest
from sdvq_core.kmeans import lloyd

K = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int = 600, d: int = 4) -> torch.Tensor:
    return torch.randn(count, d, generator=generator(1))


WEIGHTS = {
    "none": None,
    "per-point": torch.rand(600, 1, generator=generator(2)) + 0.1,
    "per-element": torch.rand(600, 4, generator=generator(3)) + 0.1,
}


def cost(x, centres, weights):
    """The whole [N, K] matrix, as the docstring writes it."""
    mass = torch.ones_like(x) if weights is None else weights.expand_as(x)
    return (mass[:, None] * (x[:, None] - centres[None]).square()).sum(2)


def total(x, centres, weights) -> float:
    return float(cost(x, centres, weights).amin(1).sum())


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_more_iterations_never_cost_more(weights):
    x = points()
    found = [total(x, lloyd(x, K, generator(), weights, iterations=n), weights) for n in (0, 1, 3, 8, 20)]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(found))


def test_clusters_that_exist_are_found():
    centres = 10 * torch.randn(K, 4, generator=generator(5))
    x = (centres[:, None] + 0.01 * torch.randn(K, 50, 4, generator=generator(6))).reshape(-1, 4)
    found = lloyd(x, 2 * K, generator())
    assert total(x, found, None) / len(x) < 1.0


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_same_seed_gives_the_same_centres(weights):
    assert torch.equal(lloyd(points(), K, generator(), weights), lloyd(points(), K, generator(), weights))


def test_one_centre_is_the_weighted_mean():
    x, weights = points(), WEIGHTS["per-element"]
    torch.testing.assert_close(lloyd(x, 1, generator(), weights)[0], (weights * x).sum(0) / weights.sum(0))


def test_no_centre_is_left_empty():
    x = torch.cat([torch.zeros(500, 4), points(100)])
    found = nearest(x, lloyd(x, K, generator(), iterations=20))
    assert len(found.unique()) >= K - 1


@pytest.mark.parametrize("count", [1, 3, K])
def test_fewer_points_than_centres(count):
    x = points(count)
    centres = lloyd(x, K, generator())
    assert centres.shape == (K, 4)
    assert total(x, centres, None) < 1e-6
    assert torch.isfinite(centres).all()


def test_points_of_no_weight_do_not_count():
    x = points()
    weights = torch.zeros(600, 1)
    weights[:200] = 1
    centres = lloyd(x, K, generator(), weights, iterations=30)
    assert torch.isfinite(centres).all()
    assert total(x[:200], centres, None) <= 1.2 * total(x[:200], lloyd(x[:200], K, generator(), None, 30), None)
