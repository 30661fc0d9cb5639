"""Estimates with confidence intervals: of a proportion, a mean, and a statistic of whole sets.

An interval accounts for the sampling of prompts and seeds, not for errors of the metrics.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Z = 1.96  # quantile of the normal distribution for a 95 % interval


class Estimate(NamedTuple):
    """A value and the bounds of its 95 % confidence interval, nan if there is none."""

    value: float
    low: float
    high: float


def exact(value: float) -> Estimate:
    """A value without an interval."""
    return Estimate(value, math.nan, math.nan)


def proportion(hits: Sequence[bool]) -> Estimate:
    """Share of true values, with the Wilson score interval.

    >>> [round(x, 2) for x in proportion([True] * 8 + [False] * 2)]
    [0.8, 0.49, 0.94]
    """
    if not len(hits):
        return exact(math.nan)
    n, share = len(hits), float(np.mean(hits))
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: Sequence[float]) -> Estimate:
    """Mean with its normal interval; nan values are left out."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return exact(float(known.mean()) if len(known) else math.nan)
    value, half = float(known.mean()), Z * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Estimate(value, value - half, value + half)


def jackknife(statistic: Callable[..., float], *sets: np.ndarray, groups: int = 10) -> Estimate:
    """A statistic of whole sets, with the interval of the delete-a-group jackknife.

    The variance is estimated by leaving out each of `groups` subsets of the rows in turn.
    """
    value = statistic(*sets)
    left = [statistic(*(np.delete(rows, np.s_[g::groups], axis=0) for rows in sets)) for g in range(groups)]
    half = Z * math.sqrt((groups - 1) * np.var(left))
    return Estimate(value, max(0.0, value - half), value + half)
