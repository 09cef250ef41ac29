"""How sure a mean or a median is: the percentile bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdvq_core.errors import ConfigError

RESAMPLES = 2000
TAILS = (2.5, 97.5)


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of n values, from 2000 resamples; (x, x) for a single value.

    Infinite values (the PSNR of identical images) make an infinite bound where they make an infinite mean.
    """
    return _interval(values, seed, np.mean)


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The same of their median."""
    return _interval(values, seed, np.median)


def _interval(values: Sequence[float], seed: int, statistic: Callable[..., Any]) -> tuple[float, float]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ConfigError("an interval needs at least one value")
    picks = np.random.default_rng(seed).integers(sample.size, size=(RESAMPLES, sample.size))
    found = np.sort(statistic(sample[picks], axis=1))  # [RESAMPLES]
    low, high = np.percentile(found, TAILS, method="nearest")
    return float(low), float(high)
