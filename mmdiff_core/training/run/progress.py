"""What a person sees of a run: a bar or log lines, metrics.jsonl, and a tracker."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .config import LoopConfig
from .errors import RunError
from .report import PARTS, Clock, Metrics, Report, as_text, peak_memory

log = logging.getLogger(__name__)


class Progress:
    """Reports each step; only the main process does.

    examples  what one optimiser step sees, over all processes
    """

    def __init__(
        self, accelerator: Accelerator, config: LoopConfig, folder: Path, step: int
    ) -> None:
        self.accelerator, self.config = accelerator, config
        self.main = accelerator.is_main_process
        self.examples = config.batch * config.accumulate * accelerator.num_processes
        self.clock, self.first, self.step, self.last = Clock(), step, step, {}
        self.lines = folder / "metrics.jsonl"
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(accelerator.device)
        if self.main:
            _keep_until(self.lines, step)
        options = {"tensorboard": {"purge_step": step + 1}}
        accelerator.init_trackers("tensorboard", init_kwargs=options)
        hidden = not self.main or not sys.stderr.isatty()
        self.bar = tqdm(
            total=config.steps, initial=step, unit="step", dynamic_ncols=True, disable=hidden
        )
        self._open_window()

    def _open_window(self) -> None:
        self.sums, self.counts = defaultdict(float), defaultdict(int)
        self.opened = dict(self.clock.seconds)

    def add(self, step: int, metrics: Metrics, last: bool) -> None:
        """Take the metrics of the step that was just done; `last`: nothing comes after it."""
        self.step, self.last = step, metrics
        for name, value in metrics.items():
            if value is not None:
                self.sums[name] += value
                self.counts[name] += 1
        self.bar.update()
        if self.main and (last or step % self.config.log_every == 0):
            self._write()

    def _write(self) -> None:
        """Write one line of means since the last one, for people and for programs."""
        spent = {}
        for part in PARTS:
            spent[part] = (self.clock.seconds[part] - self.opened[part]) / self.counts["loss"]
        rate = self.examples / max(sum(spent.values()), 1e-9)
        means: Metrics = {}
        for name in self.last:
            count = self.counts[name]
            means[name] = self.sums[name] / count if count else None
        seconds = {f"{part}_seconds": value for part, value in spent.items()}
        line = means | {"images_per_second": rate} | seconds
        known = {name: value for name, value in line.items() if value is not None}
        self.accelerator.log(known, step=self.step)
        self._append({"step": self.step} | line)
        self.bar.set_postfix_str(f"{as_text(means)}, {rate:.3g} images/s")
        if self.bar.disable:
            left = tqdm.format_interval((self.config.steps - self.step) * sum(spent.values()))
            log.info(
                "step %d of %d: %s, %.3g images/s, %s left",
                self.step,
                self.config.steps,
                as_text(means),
                rate,
                left,
            )
        self._open_window()

    def _append(self, line: dict) -> None:
        try:
            with self.lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.lines} could not be written at step {self.step}: {error}. The saved states "
                "are untouched: make room, then start again with the same folder."
            ) from error

    def report(self, stopped: bool) -> Report:
        """The report of everything since this was made; it is also logged."""
        trained = sum(self.clock.seconds.values())
        seen = (self.step - self.first) * self.examples
        seconds = {f"{part}_seconds": value for part, value in self.clock.seconds.items()}
        report = Report(
            steps=self.step,
            images_per_second=seen / trained if trained else 0.0,
            peak_memory_bytes=peak_memory(self.accelerator.device),
            seconds=time.perf_counter() - self.clock.began,
            stopped=stopped,
            metrics=self.last,
            **seconds,
        )
        if self.main:
            log.info("%s", report)
        return report

    def close(self) -> None:
        """Close the bar and the trackers."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _keep_until(lines: Path, step: int) -> None:
    """Remove what a run wrote after the state it goes on from: it is written again."""
    if not lines.is_file():
        return
    written = lines.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = [f"{line}\n" for line in written if _step_of(line) <= step]
    part = lines.with_name(lines.name + ".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(lines)


def _step_of(line: str) -> float:
    try:
        found = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):  # cut off by the end of the process
        return math.inf
    return found if type(found) is int else math.inf
