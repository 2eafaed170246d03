"""What is measured of a run: seconds by part, peak memory, and the report at its end."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

PARTS = ("data", "model", "optimizer")
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Report:
    """What a call of `fit` did. `steps` is where the run stands now; the rest is of this call.

    images_per_second   of all processes, saving and sampling not counted
    peak_memory_bytes   of this process: allocated on the GPU, or resident where there is none
    seconds             wall clock; data, model (forward and backward) and optimizer are parts of
                        it, roughly on a GPU
    stopped             whether a signal ended it before its last step
    metrics             of the last step: loss terms, learning_rate, gradient_norm (None where
                        fp16 overflowed)
    """

    steps: int
    images_per_second: float
    peak_memory_bytes: int
    seconds: float
    data_seconds: float
    model_seconds: float
    optimizer_seconds: float
    stopped: bool
    metrics: Metrics

    def __str__(self) -> str:
        return (
            f"{'stopped' if self.stopped else 'done'} at step {self.steps}: "
            f"{self.images_per_second:.3g} images/s, {self.peak_memory_bytes / 1e9:.2f} GB at "
            f"most, {self.seconds:.1f} s (data {self.data_seconds:.1f}, model "
            f"{self.model_seconds:.1f}, optimizer {self.optimizer_seconds:.1f}); "
            f"{as_text(self.metrics)}"
        )


def as_text(metrics: Metrics) -> str:
    """Metrics on one line."""
    parts = []
    for name, value in metrics.items():
        parts.append(f"{name} {'overflow' if value is None else f'{value:.4g}'}")
    return ", ".join(parts)


class Clock:
    """Wall-clock seconds by part: `with clock("data"): ...`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.began = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - began


def peak_memory(device: torch.device) -> int:
    """Largest memory of this process in bytes: on the GPU, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil  # there is no `resource` on Windows, and no need of this elsewhere

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, on macOS bytes


def hardware() -> str:
    """What torch computes on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
