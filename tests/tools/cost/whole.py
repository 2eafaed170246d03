"""Whole images: their seconds, memory, and what is kept while they are drawn."""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .arm import Arm
from .timing import Kept, Meter, sample, say

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5)


@dataclass(frozen=True)
class WholeArm:
    """`seconds` by number of steps; the peak is of the longest, above what the process held."""

    arm: str
    seconds: dict[int, float]
    peak: int | None
    kept: Kept


@dataclass(frozen=True)
class Whole:
    """Whole images of every arm, from the sampler's start to the latents."""

    arms: list[WholeArm]


class Peak:
    """The most memory in use during something, above what was in use before, in bytes; None where
    the system does not tell.
    """

    def __init__(self, device: str):
        self.cuda = device == "cuda"

    def of(self, do: Callable[[], object]) -> int | None:
        before = self.reset()
        do()
        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        return None if before is None else status("VmHWM") - before

    def reset(self) -> int | None:
        """What is in use now, from where the peak is counted. Memory that the process holds
        without using it goes back to the system first: taken again, it would not count.
        """
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        if not CLEAR.exists():
            return None
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
        if trim is not None:
            trim(0)
        try:
            CLEAR.write_text(RESET_PEAK)
            return status("VmRSS")
        except OSError:
            return None


def status(name: str) -> int:
    """A size in bytes that Linux tells of this process."""
    return int(re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)[1]) * 1024


def measure_whole(arms: Sequence[Arm], size: int, meter: Meter, args: argparse.Namespace) -> Whole:
    """One image of each number of steps by every arm."""
    found, peak = [], Peak(args.device)
    for arm in arms:
        say(f"whole images: {arm.name}")
        seconds: dict[int, float] = {}

        def draw(steps: int, arm: Arm = arm, seconds: dict = seconds) -> None:
            meter.begin()
            begun = time.perf_counter()
            sample(arm, size, steps, args.cfg)
            if meter.cuda:
                torch.cuda.synchronize()
            seconds[steps] = time.perf_counter() - begun

        *shorter, longest = sorted(args.images)
        for steps in shorter:
            draw(steps)
        most = peak.of(lambda: draw(longest))  # noqa: B023
        found.append(WholeArm(arm.name, seconds, most, meter.kept))
    return Whole(found)


def whole_markdown(whole: Whole) -> str:
    """The table of whole images."""
    steps = list(whole.arms[0].seconds)
    columns = [f"{n} steps, s" for n in steps]
    columns += ["kept of subjects, MB", "kept of the text, MB", "peak above the model, MB"]
    rows = [["whole image", *columns], ["---"] * (len(columns) + 1)]
    for arm in whole.arms:
        row = [arm.arm, *(f"{arm.seconds[n]:.1f}" for n in steps)]
        row += [f"{size / 1e6:.2f}" for size in (arm.kept.subjects, arm.kept.text)]
        rows.append([*row, "-" if arm.peak is None else f"{arm.peak / 1e6:.0f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def encoding_told(args: argparse.Namespace) -> str:
    """A sentence on encoding a reference, at the true sizes whatever the UNet's."""
    from benchmark_encoding import Measure

    say("encoding a reference")
    measure = Measure(torch.rand(1, 512, 512, 3))
    first, again = measure.encode(1)[0], measure.encode(1, "ben")[0]
    return (
        f"Encoding a reference at the true sizes: {first:.2f} s, and {again:.3f} s under another "
        "name; finding the face is not in it"
    )
