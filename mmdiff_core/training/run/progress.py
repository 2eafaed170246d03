"""What a person sees of a run: a bar or log lines, metrics.jsonl, a tracker, and the report at its end."""
from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .run_state import LoopConfig, RunError

log = logging.getLogger(__name__)

PARTS = ("data", "model", "optimizer")
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Report:
    """What a call of `fit` did. `steps` is where the run stands now; the rest is of this call alone.

    images_per_second   of all processes, saving and sampling not counted
    peak_memory_bytes   of this process: allocated on the GPU, or resident where there is none
    seconds             wall clock; data, model (forward and backward) and optimizer are parts of it, roughly on a GPU
    stopped             whether a signal ended it before its last step
    metrics             of the last step: loss terms, learning_rate, gradient_norm (None where fp16 overflowed)
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
            f"{'stopped' if self.stopped else 'done'} at step {self.steps}: {self.images_per_second:.3g} images/s, "
            f"{self.peak_memory_bytes / 1e9:.2f} GB at most, {self.seconds:.1f} s (data {self.data_seconds:.1f}, "
            f"model {self.model_seconds:.1f}, optimizer {self.optimizer_seconds:.1f}); {_told(self.metrics)}"
        )


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


class Progress:
    """Tells of each step; only the main process does. `examples` is what one optimiser step sees, over all processes."""

    def __init__(self, accelerator: Accelerator, config: LoopConfig, folder: Path, step: int) -> None:
        self.accelerator, self.config, self.main = accelerator, config, accelerator.is_main_process
        self.examples = config.batch * config.accumulate * accelerator.num_processes
        self.clock, self.first, self.step, self.last = Clock(), step, step, {}
        self.lines = folder / "metrics.jsonl"
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)
        if self.main:
            _keep_until(self.lines, step)
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})
        hidden = not self.main or not sys.stderr.isatty()
        self.bar = tqdm(total=config.steps, initial=step, unit="step", dynamic_ncols=True, disable=hidden)
        self._open_window()

    def _open_window(self) -> None:
        self.sums, self.counts, self.opened = defaultdict(float), defaultdict(int), dict(self.clock.seconds)

    def add(self, step: int, metrics: Metrics, last: bool) -> None:
        """The metrics of the step that was just done; `last`: nothing comes after it."""
        self.step, self.last = step, metrics
        for name, value in metrics.items():
            if value is not None:
                self.sums[name] += value
                self.counts[name] += 1
        self.bar.update()
        if self.main and (last or step % self.config.log_every == 0):
            self._tell()

    def _tell(self) -> None:
        """One line of means since the last one, for people and for programs."""
        count = self.counts["loss"]
        spent = {part: (self.clock.seconds[part] - self.opened[part]) / count for part in PARTS}
        rate = self.examples / max(sum(spent.values()), 1e-9)
        means: Metrics = {name: self.sums[name] / self.counts[name] if self.counts[name] else None for name in self.last}
        line = means | {"images_per_second": rate} | {f"{part}_seconds": value for part, value in spent.items()}
        self.accelerator.log({k: v for k, v in line.items() if v is not None}, step=self.step)
        self._append({"step": self.step} | line)
        self.bar.set_postfix_str(f"{_told(means)}, {rate:.3g} images/s")
        if self.bar.disable:
            left = (self.config.steps - self.step) * sum(spent.values())
            log.info("step %d of %d: %s, %.3g images/s, %s left", self.step, self.config.steps, _told(means), rate,
                     tqdm.format_interval(left))
        self._open_window()

    def _append(self, line: dict) -> None:
        try:
            with self.lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.lines} could not be written at step {self.step}: {error}. The saved states are untouched: make room, "
                "then start again with the same folder."
            ) from error

    def report(self, stopped: bool) -> Report:
        """Of everything since this was made; also logged."""
        trained = sum(self.clock.seconds.values())
        report = Report(
            steps=self.step, images_per_second=(self.step - self.first) * self.examples / trained if trained else 0.0,
            peak_memory_bytes=_peak_memory(self.accelerator.device), seconds=time.perf_counter() - self.clock.began,
            **{f"{part}_seconds": value for part, value in self.clock.seconds.items()}, stopped=stopped, metrics=self.last,
        )
        if self.main:
            log.info("%s", report)
        return report

    def close(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _told(metrics: Metrics) -> str:
    return ", ".join(f"{name} {'overflow' if value is None else f'{value:.4g}'}" for name, value in metrics.items())


def _keep_until(lines: Path, step: int) -> None:
    """Drop what a run wrote after the state it goes on from: it comes again."""
    if not lines.is_file():
        return
    kept = [line for line in lines.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    part = lines.with_name(lines.name + ".part")
    part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    part.replace(lines)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):       # a line cut off by the end of the process
        return math.inf


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil
        return psutil.Process().memory_info().peak_wset
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024    # kilobytes, on macOS bytes
