"""One way to sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to sample."""

    name: str
    model: Any
    positive: list
    negative: list
