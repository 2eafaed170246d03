"""How a run trains: a run's section "loop"."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ...untrusted import listed, quoted

# field -> (type, smallest, largest)
RANGES = {
    "steps": (int, 1, 10**9),
    "batch": (int, 1, 10**6),
    "accumulate": (int, 1, 10**6),
    "warmup_steps": (int, 0, 10**9),
    "save_every": (int, 1, 10**9),
    "keep_last": (int, 1, 10**6),
    "log_every": (int, 1, 10**9),
    "sample_every": (int, 0, 10**9),
    "workers": (int, 0, 256),
    "seed": (int, 0, 2**32 - 1),
    "learning_rate": (float, 1e-12, 10),
    "muon_rate": (float, 1e-6, 1e6),
    "final_fraction": (float, 0, 1),
    "weight_decay": (float, 0, 10),
    "clip_norm": (float, 0, 1e9),
    "ema_decay": (float, 0, 0.999999),
}
CHOICES = {
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "constant"),
    "mixed_precision": ("no", "bf16", "fp16"),
}


@dataclass(frozen=True)
class LoopConfig:
    """How a run trains. A field outside its range is a ValueError that names it.

    steps            optimiser steps of the whole run, from 1; if changed within a run, a cosine
                     bends to the new last step
    batch            examples in one forward pass of one process, from 1
    accumulate       forward passes summed into one optimiser step, from 1
    optimizer        "adamw", or "muon": Muon for matrices beside AdamW for all else (not
                     sharded)
    learning_rate    AdamW's peak rate, above 0
    muon_rate        the matrices' rate under Muon in units of learning_rate, above 0
    betas            AdamW's two averages, the first also Muon's, each from 0 and below 1
    weight_decay     of AdamW and Muon, from 0
    warmup_steps     optimiser steps in which the rate rises from 0, from 0
    schedule         after the warm-up: "constant", or "cosine" down to the last step
    final_fraction   where the cosine ends, as a share of the peak, 0..1
    clip_norm        largest norm of the whole gradient, from 0; 0 = not clipped
    ema_decay        of the averaged weights, from 0 and below 1, typically 0.999..0.9999;
                     0 = no average
    mixed_precision  "no", "bf16" or "fp16"; the trained weights stay float32 (DeepSpeed makes the
                     whole model of that type)
    seed             of Python's, NumPy's and torch's global generators, 0..2**32-1
    save_every       optimiser steps between two states on disk, from 1
    keep_last        newest states kept on disk, from 1; there must be room for one more while it
                     is written
    log_every        optimiser steps between two lines of metrics, from 1; a line holds their mean
    sample_every     optimiser steps between two sample grids, from 0; 0 = none
    workers          threads that prepare batches ahead, 0..256; 0 = none
    tracker          accelerate's name of an experiment tracker, or None; metrics.jsonl is written
                     in any case
    """

    steps: int
    batch: int
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    muon_rate: float = 4.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: str = "constant"
    final_fraction: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: str = "no"
    seed: int = 0
    save_every: int = 500
    keep_last: int = 2
    log_every: int = 10
    sample_every: int = 0
    workers: int = 1
    tracker: str | None = "tensorboard"

    def __post_init__(self) -> None:
        for name, (kind, low, high) in RANGES.items():
            _check_number(name, getattr(self, name), kind, low, high)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                found = quoted(getattr(self, name))
                raise ValueError(f"{name} is {found}, expected one of {known}")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        if not pair or not all(type(b) in (int, float) and 0 <= b < 1 for b in self.betas):
            found = quoted(self.betas)
            raise ValueError(f"betas is {found}, expected two numbers from 0 and below 1")
        if not isinstance(self.tracker, str | None) or len(self.tracker or "") > 100:
            raise ValueError(f"tracker is {quoted(self.tracker)}, expected a name or null")

    def to_dict(self) -> dict:
        """Plain values for json.dump; `from_dict` is the inverse."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping) -> LoopConfig:
        """A dict as json.load gives it.

        ValueError names unknown and missing fields, and values out of range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"the training config is {quoted(values)}, expected an object")
        fields = dataclasses.fields(cls)
        known = {f.name for f in fields}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"the training config has unknown fields {listed(unknown)}; known are "
                f"{sorted(known)}"
            )
        required = {f.name for f in fields if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise ValueError(f"the training config lacks the fields {missing}")
        betas = values.get("betas", cls.betas)
        return cls(**{**values, "betas": tuple(betas) if isinstance(betas, list) else betas})


def _check_number(name: str, value: object, kind: type, low: float, high: float) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or kind is float and isinstance(value, float)
    if not number or not low <= value <= high:
        a = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} is {quoted(value)}, expected {a} from {low} to {high}")
