"""The average of the weights along a run: exported, since it is better than the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def decay_at(decay: float, update: int) -> float:
    """The decay of update number `update`, counted from 1.

    It rises with (1 + n) / (10 + n), so that a young average forgets the initial weights, and ends
    at `decay`.
    """
    return min(decay, (1 + update) / (10 + update))


class Ema:
    """average <- d average + (1 - d) weights, kept in float32 on the weights' device.

    parameters  the live trainable parameters by name; any float type
    decay       0..1, the decay reached after the warm-up of `decay_at`
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay, self.average = dict(parameters), decay, {}
        for name, parameter in self.parameters.items():
            self.average[name] = parameter.detach().to(torch.float32, copy=True)

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Add the weights to the average. `update` counts from 1."""
        share = 1 - decay_at(self.decay, update)
        for name, average in self.average.items():
            average.lerp_(self.parameters[name].float(), share)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a saved average; the names must be those of the parameters (KeyError)."""
        for name, average in self.average.items():
            average.copy_(tensors[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the parameters; they get exactly their own values back after it."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        _copy(self.average, self.parameters)
        try:
            yield
        finally:
            _copy(kept, self.parameters)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
