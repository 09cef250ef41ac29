"""How sure a mean is: the percentile bootstrap (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdvq_core.errors import ConfigError

RESAMPLES = 2000
TAILS = (2.5, 97.5)


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of n values, from 2000 resamples; (x, x) for a single value.

    Infinite values (the PSNR of identical images) make an infinite bound where they make an infinite mean.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ConfigError("an interval needs at least one value")
    picks = np.random.default_rng(seed).integers(sample.size, size=(RESAMPLES, sample.size))
    means = np.sort(sample[picks].mean(axis=1))  # [RESAMPLES]
    low, high = np.percentile(means, TAILS, method="nearest")
    return float(low), float(high)
