"""The noise and the timestep of each example; they follow from its number."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
        if u[3] < middle:
            fraction = u[:3].mean()
        elif u[3] < middle + high:
            fraction = 1 - u[0] * u[1]
        else:
            fraction = u[0]
        steps.append((fraction * timesteps).long().clamp_max(timesteps - 1))
        noise.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(noise), torch.stack(steps)
