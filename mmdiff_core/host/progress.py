"""How far a sampling is: told by the sigma of each model call.

Samplers call the model, and their callback, as often as they like; some call twice a step, some go
back to a higher sigma, and a second sampler may go on where the first stopped. So nothing is
counted: whatever depends on the progress asks for the sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEAR = 1 + 1e-5  # a sampler that computes a sigma of the schedule anew misses it by its rounding


def read_sigma(sigmas: Tensor) -> float | Tensor:
    """The sigma of a model call, from the `sigmas` [B] that the host hands to it. On a GPU it stays
    there as a tensor [1]: reading it would stop the sampling loop."""
    return sigmas[:1].tolist()[0] if sigmas.device.type == "cpu" else sigmas[:1]


class LateAnswer:
    """A yes that a GPU came to, told to the host once it has arrived: late, but nothing waits."""

    def __init__(self):
        self.said = False
        self._copy: Tensor | None = None
        self._arrival: torch.cuda.Event | None = None

    def ask(self, answer: Tensor) -> None:
        """Notice `answer` [1], or an earlier one that has arrived by now; `said` stays once it was
        yes."""
        if self.said or answer.device.type != "cuda":
            return
        if self._copy is None:
            self._copy = answer.to("cpu", non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()
        elif self._arrival.query():
            self.said, self._copy = bool(self._copy), None


@dataclass(frozen=True, eq=False)
class Window:
    """A part of the denoising, as sigmas. first >= sigma > last."""

    first: float
    last: float

    @classmethod
    def of(cls, sampling, start: float, end: float) -> Window:
        """From fractions of the denoising, by the schedule the model has when it samples."""
        first = math.inf if start <= 0 else float(sampling.percent_to_sigma(start))
        return cls(first, -1.0 if end >= 1 else float(sampling.percent_to_sigma(end)))

    def factor(self, sigmas: Tensor) -> float | Tensor:
        """1 inside, 0 outside; on a GPU a tensor [1], as `read_sigma`."""
        if math.isinf(self.first) and self.last <= 0:
            return 1.0
        sigma = read_sigma(sigmas)
        if isinstance(sigma, float):
            return float(self.last < sigma <= self.first)
        return (sigma <= self.first) & (sigma > self.last)
