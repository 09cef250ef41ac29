"""The bootstrap interval of a mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sdvq_core.errors import ConfigError
from sdvq_core.metrics.intervals import bootstrap_interval, median_interval

VALUES = np.random.default_rng(1).normal(10, 2, 64).tolist()


def test_it_brackets_the_mean() -> None:
    low, high = bootstrap_interval(VALUES)
    assert low < np.mean(VALUES) < high


def test_it_is_about_four_standard_errors_wide() -> None:
    low, high = bootstrap_interval(VALUES)
    assert high - low == pytest.approx(3.92 * np.std(VALUES) / math.sqrt(64), rel=0.1)


def test_same_seed_same_interval() -> None:
    assert bootstrap_interval(VALUES, 3) == bootstrap_interval(VALUES, 3) != bootstrap_interval(VALUES, 4)


def test_four_times_the_values_halve_it() -> None:
    short, long = bootstrap_interval(VALUES), bootstrap_interval(VALUES * 4)
    assert (short[1] - short[0]) / (long[1] - long[0]) == pytest.approx(2, rel=0.1)


def test_it_covers_the_truth_in_about_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    covered = [low < 0 < high for low, high in (bootstrap_interval(rng.normal(size=40)) for _ in range(200))]
    assert 0.88 < np.mean(covered) < 0.99


def test_one_value_is_its_own_interval() -> None:
    assert bootstrap_interval([2.5]) == (2.5, 2.5)


def test_infinite_values_make_infinite_bounds_not_nan() -> None:
    assert bootstrap_interval([30.0, math.inf]) == (30.0, math.inf)
    assert bootstrap_interval([math.inf] * 3) == (math.inf, math.inf)


def test_no_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one value"):
        bootstrap_interval([])


def test_the_medians_interval_brackets_the_median_and_ignores_outliers() -> None:
    low, high = median_interval(VALUES)
    assert low <= np.median(VALUES) <= high
    wild = median_interval([*VALUES[:-1], 1e9])
    assert wild[1] == pytest.approx(high, rel=0.1)
    assert median_interval([3.0]) == (3.0, 3.0)
