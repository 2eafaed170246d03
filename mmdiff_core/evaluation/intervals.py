"""Means with 95 % intervals, by bootstrap over subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SEED = 19
DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean, the ends of its 95 % interval, and of how many units it is the mean.

    low and high are None for a single unit: nothing can be said of its spread.
    """

    mean: float
    low: float | None
    high: float | None
    units: int


def bootstrap(
    values: Sequence[float], seed: int = SEED, draws: int = DRAWS, chunk: int = 1000
) -> Interval | None:
    """Mean of one value per subject, with the 2.5th and 97.5th percentile of the means of `draws`
    resamples with replacement. The same values give the same interval. None without values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, percentile intervals.
    """
    rows = np.asarray(values, np.float64)
    if not len(rows):
        return None
    if len(rows) == 1:
        return Interval(float(rows[0]), None, None, 1)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, draws, chunk):
        chosen = rng.integers(len(rows), size=(min(chunk, draws - start), len(rows)))
        means.append(rows[chosen].mean(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return Interval(float(rows.mean()), float(low), float(high), len(rows))


def by_subject(values: Mapping[str, Sequence[float]]) -> Interval | None:
    """Mean over subjects of each subject's mean over its images; the interval is over subjects."""
    return bootstrap([float(np.mean(own)) for own in values.values() if len(own)])
