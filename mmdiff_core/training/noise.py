"""The noise and the timestep of each example; they follow from its number."""
from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

STREAM = 13         # keeps these draws apart from others of the same seed and example


def draw_noise(
    indices: Sequence[int], shape: Sequence[int], timesteps: int, seed: int, middle: float = 0.0,
    high: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Noise [B ...] and timestep [B] of each example.

    They follow from its number and the run's seed, whatever process it is drawn on. Timesteps are
    uniform except for two shares of the examples: `middle` has the mean of three uniform ones,
    where shapes are decided, and `high` has 1 minus the product of two, where colours and
    positions are.
    """
    noise, steps = [], []
    for index in indices:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        u = torch.rand(4, generator=generator)
        fraction, chosen = u[0], float(u[3])
        if chosen < middle:
            fraction = u[:3].mean()
        elif chosen < middle + high:
            fraction = 1 - u[0] * u[1]
        steps.append(min(int(fraction * timesteps), timesteps - 1))
        noise.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(noise), torch.tensor(steps)


@dataclass(frozen=True)
class LogNormal:
    """A share of the examples whose sigma is log-normal rather than from a uniform timestep.

    median, spread  of sigma: exp(log(median) + spread * normal)
    share           of the examples, 0..1
    """

    median: float
    spread: float
    share: float

    def __post_init__(self) -> None:
        if self.median <= 0 or self.spread < 0 or not 0 <= self.share <= 1:
            raise ValueError(
                f"noise levels: median {self.median}, spread {self.spread}, share {self.share}; "
                "expected a median above 0, a spread from 0 and a share in 0..1"
            )

    def replace_steps(
        self, steps: Tensor, indices: Sequence[int], sigmas: Tensor, seed: int
    ) -> Tensor:
        """Timesteps [B] with the chosen share replaced. sigmas [timesteps], ascending."""
        logs, steps = sigmas.log().tolist(), steps.clone()
        for row, index in enumerate(indices):
            rng = np.random.default_rng((seed, index, STREAM))
            if rng.random() < self.share:
                sigma = self.median * math.exp(rng.normal(0, self.spread))
                steps[row] = nearest(logs, math.log(sigma))
        return steps


def nearest(ascending: Sequence[float], value: float) -> int:
    """Number of the element that is closest to `value`."""
    right = min(max(bisect_left(ascending, value), 1), len(ascending) - 1)
    left = right - 1
    return left if value - ascending[left] < ascending[right] - value else right
