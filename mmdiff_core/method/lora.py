"""A low-rank pair and what it adds: delta = up @ down (rank r, no alpha: the release scales by
1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """down [r in], up [out r]."""

    down: Tensor
    up: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """delta applied to x [... in] -> [... out], computed where and how x is."""
        return F.linear(F.linear(x, self.down.to(x)), self.up.to(x))

    def delta(self, weight: Tensor) -> Tensor:
        """up @ down, where and how `weight` [out in] is."""
        return self.up.to(weight) @ self.down.to(weight)


LoRAPairs = dict[str, LowRank]  # module path -> pair
