"""The table of results."""

from __future__ import annotations

import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmdiff_core.bases import SDXL, Base

from .arm import Arm
from .counting import Counts
from .setting import TEXT_TOKENS, TOKENS
from .timing import Timing


@dataclass(frozen=True)
class Line:
    """One arm in the report. Everything called extra is the arm less the plain model."""

    arm: str
    step_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    pairs: int
    cpu_ratio: float
    cpu_ratio_quartiles: tuple[float, float]
    operations: int
    operations_ratio: float
    kernels_ratio: float
    flop_ratio: float
    extra_waits: int
    extra_waits_first_step: int
    before_loop_extra_ms: float
    first_step_extra_ms: float
    peak_extra_mb: float | None
    extra_operations: dict[str, int]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def median_of(timings: Sequence[Timing], name: str) -> float:
    return statistics.median(getattr(timing, name) for timing in timings)


def make_line(
    arm: Arm, timings: Sequence[Timing], plains: Sequence[Timing], counts: Counts, plain: Counts
) -> Line:
    """The first steps count for themselves: masks are made there."""
    ratios = [step / bare for t in timings for step, bare in zip(t.steps[1:], t.bare[1:])]
    cpu_ratios = [step / bare for t in timings for step, bare in zip(t.busy[1:], t.bare_busy[1:])]
    steps = statistics.median(step for t in timings for step in t.steps[1:])
    bare = statistics.median(step for t in timings for step in t.bare[1:])
    first = statistics.median(t.steps[0] - t.bare[0] for t in timings) - (steps - bare)
    before, peak = (
        median_of(timings, name) - median_of(plains, name) for name in ("before", "peak")
    )
    extra = Counter(counts.operations)
    extra.subtract(plain.operations)
    return Line(
        arm=arm.name,
        step_ms=1000 * steps,
        ratio=statistics.median(ratios),
        ratio_quartiles=quartiles(ratios),
        pairs=len(ratios),
        cpu_ratio=statistics.median(cpu_ratios),
        cpu_ratio_quartiles=quartiles(cpu_ratios),
        operations=counts.total,
        operations_ratio=counts.total / plain.total,
        kernels_ratio=counts.kernels / plain.kernels,
        flop_ratio=counts.flop / plain.flop,
        extra_waits=counts.waits - plain.waits,
        extra_waits_first_step=sum(counts.first_waits.values()) - sum(plain.first_waits.values()),
        before_loop_extra_ms=1000 * before,
        first_step_extra_ms=1000 * first,
        peak_extra_mb=peak / 2**20 if timings[0].peak else None,
        extra_operations={name: n for name, n in extra.most_common() if n},
    )


def state_bytes(subjects: int, bytes_per_number: int = 2, base: Base = SDXL) -> int:
    """K and V of all layers for subjects with one reference each, at SDXL's true widths in fp16."""
    return sum(2 * TOKENS * subjects * block.width * bytes_per_number for block in base.blocks)


def text_bytes(bytes_per_number: int = 2, base: Base = SDXL) -> int:
    """K and V of the text of one row, of all layers."""
    return sum(2 * TEXT_TOKENS * block.width * bytes_per_number for block in base.blocks)


def machine(device: str) -> dict[str, Any]:
    """What the numbers were taken on."""
    import comfyui_version

    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
        "python": platform.python_version(),
    }


COLUMNS = (
    "arm",
    "step, ms",
    "time ratio (quartiles)",
    "CPU time ratio (quartiles)",
    "operations",
    "kernels",
    "FLOP",
    "extra waits a step / first step",
    "extra before the loop, ms",
    "extra first step, ms",
    "extra peak, MB",
)


def table_row(line: Line) -> tuple[str, ...]:
    def spread(ratio: float, low_high: tuple[float, float]) -> str:
        return f"{ratio:.3f} ({low_high[0]:.3f} to {low_high[1]:.3f})"

    return (
        line.arm,
        f"{line.step_ms:.1f}",
        spread(line.ratio, line.ratio_quartiles),
        spread(line.cpu_ratio, line.cpu_ratio_quartiles),
        f"{line.operations_ratio:.3f}",
        f"{line.kernels_ratio:.3f}",
        f"{line.flop_ratio:.4f}",
        f"{line.extra_waits} / {line.extra_waits_first_step}",
        f"{line.before_loop_extra_ms:.1f}",
        f"{line.first_step_extra_ms:.1f}",
        "-" if line.peak_extra_mb is None else f"{line.peak_extra_mb:.1f}",
    )


def markdown(lines: Sequence[Line], plain_ms: float, plain: Counts) -> str:
    """The report's table; ratios are to the plain model."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS)]
    rows.append(
        (
            "plain",
            f"{plain_ms:.1f}",
            "1",
            "1",
            f"1 (= {plain.total})",
            f"1 (= {plain.kernels})",
            f"1 (= {plain.flop / 1e9:.1f} G)",
            "0",
            "0",
            "0",
            "-",
        )
    )
    rows += [table_row(line) for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
