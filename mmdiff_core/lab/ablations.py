"""Ablations in the small world: every arm trained on the same images at the same budget, drawn
from the same noise, and scored by the exact ruler.

A folder holds it all: packs/ (the images trained on), ARM-SEED/ (adapter.safetensors,
metrics.jsonl, facts.json and a sheet of images per question), results.json (what `score_all`
counted).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..checkpoints import checkpoint
from ..host.frozen_base.base import load_base
from ..host.frozen_base.build import build_task
from ..host.frozen_base.run import export_with
from ..small_world import scenes, score
from ..small_world.trials import QUESTIONS, Question, count, make_trial
from ..training.layers import MEASURES
from ..training.run.config import LoopConfig
from ..training.run.loop import fit
from ..training.task import MMDiffTask
from ..training.trainable import from_flat
from .answers import SEED, draw, load_reader
from .arms import BY_NAME, run_of
from .packs import PackedExamples
from .sheets import load_sheet, save_sheet

log = logging.getLogger(__name__)
ASKED = {q.name: q for q in QUESTIONS if q.name in ("one", "two different", "two of a class")}
LEAKAGE = "leakage"  # the first subject alone, the second as its bare class
CALIBRATED = 24  # steps whose time is measured


@dataclass(frozen=True)
class Plan:
    """What is trained and drawn.

    folder   of everything
    arms     names of `arms.ARMS`, all trained at the same time
    seeds    of the adapters and of their noise, one after the other
    batch    images of a step
    steps    of every run; None = as many as fit before `until`
    until    time.time() at which everything must be drawn; None = no limit
    images   drawn for each question with two subjects; half as many for one, a quarter for leakage
    device   of the training
    """

    folder: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    batch: int
    steps: int | None
    until: float | None
    images: int
    device: str

    @property
    def packs(self) -> Path:
        return self.folder / "packs"

    def cells(self) -> dict[str, int]:
        """How many images each question gets."""
        few = {"one": max(1, self.images // 2), LEAKAGE: max(1, self.images // 4)}
        return {name: few.get(name, self.images) for name in (*ASKED, LEAKAGE)}

    def reserve(self) -> float:
        """Seconds that are left for drawing one adapter's images on a GPU with all arms at once."""
        return 10 + 0.03 * sum(self.cells().values())


class Runs:
    """One arm's runs, in a process of its own."""

    def __init__(self, plan: Plan, name: str):
        self.plan, self.arm = plan, BY_NAME[name]
        self.base = load_base("small-world")
        self.base.vae.first_stage_model.float()
        self.source = PackedExamples(plan.packs, plan.batch, plan.device)

    def all(self) -> None:
        """Train and draw every seed that has no images yet."""
        steps = self.plan.steps or self.calibrated()
        for at, seed in enumerate(self.plan.seeds):
            folder = self.plan.folder / f"{self.arm.name}-{seed}"
            there = (folder / "facts.json").is_file()
            if not there and not self.one(seed, steps, folder, len(self.plan.seeds) - at):
                return

    def one(self, seed: int, steps: int, folder: Path, left: int) -> bool:
        """Train one adapter, draw its images, and write what is known of it.

        False where a signal ended the training before its last step, and not the time: its state
        stays, and the same command goes on from it.
        """
        run = run_of(self.arm, seed, steps, self.plan.batch)
        task = build_task(run, self.plan.device, base=self.base)
        with closing(task.bridge):
            export = export_with(run, task, "python -m mmdiff_core ablations")
            loop = LoopConfig.from_dict({"seed": seed, **run.loop})
            with stopped_at(self.latest(left)):
                report = fit(task, self.source, loop, folder, export=export)
            if report.stopped and self.plan.until is None:
                return False
            drop_states(folder)
            from_flat(checkpoint.read(folder / "adapter.safetensors")[1], task.adapter)
            facts = {"steps": report.steps, "images": report.steps * self.plan.batch}
            facts |= {"asked_steps": steps, "images_per_second": report.images_per_second}
            began = time.time()
            draw_all(task, self.plan.cells(), folder)
        facts |= {"drawing_seconds": time.time() - began}
        facts["inside"] = inside(folder)
        (folder / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return True

    def latest(self, left: int) -> float | None:
        """When the training of this seed must end, with `left` seeds to go."""
        if self.plan.until is None:
            return None
        return time.time() + self.time_left() / left

    def time_left(self) -> float:
        """Seconds for training, without those for drawing the seeds that are not drawn yet."""
        folders = [self.plan.folder / f"{self.arm.name}-{seed}" for seed in self.plan.seeds]
        open_ones = sum(not (folder / "facts.json").is_file() for folder in folders)
        return self.plan.until - time.time() - open_ones * self.plan.reserve()

    def calibrated(self) -> int:
        """Steps that fit, from the time of a step while all arms run; the same for all arms."""
        if self.plan.until is None:
            raise ValueError("ablations need steps, or a time at which they end")
        times = self.plan.folder / "times"
        self._try(5)
        share(times, f"{self.arm.name}.begun", 0, len(self.plan.arms))
        began = time.time()
        self._try(CALIBRATED)
        own = (time.time() - began) / CALIBRATED
        seconds = share(times, f"{self.arm.name}.step", own, len(self.plan.arms))
        step = (sum(seconds) / len(seconds) + max(seconds)) / 2
        steps = int(0.97 * self.time_left() / len(self.plan.seeds) / step)
        log.info("%s: %.3f s a step, %d steps", self.arm.name, own, steps)
        agreed = share(times, f"{self.arm.name}.steps", steps, len(self.plan.arms))
        return max(1, int(min(agreed)))

    def _try(self, steps: int) -> None:
        run = run_of(self.arm, 0, steps, self.plan.batch)
        task = build_task(run, self.plan.device, base=self.base)
        folder = self.plan.folder / "tries" / self.arm.name
        fit(task, self.source, LoopConfig.from_dict({"seed": 0, **run.loop}), folder)
        task.bridge.close()
        shutil.rmtree(folder)


def share(folder: Path, name: str, value: float, count: int, limit: float = 120) -> list[float]:
    """Tell a number to `count` processes and wait for theirs. TimeoutError after `limit` seconds.

    name  "ARM.KIND"; files of the same kind belong together
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.part"
    temporary.write_text(str(value), encoding="utf-8")
    temporary.replace(folder / name)
    kind, began = name.rpartition(".")[2], time.time()
    while True:
        files = list(folder.glob(f"*.{kind}"))
        if len(files) >= count:
            return [float(file.read_text(encoding="utf-8")) for file in files]
        if time.time() - began > limit:
            raise TimeoutError(f"{folder} has {len(files)} files *.{kind}, expected {count}")
        time.sleep(0.05)


@contextmanager
def stopped_at(when: float | None) -> Iterator[None]:
    """Send this process SIGTERM at a time, which ends a training with its adapter saved.

    when  time.time(), at least a second from now; None = never
    """
    if when is None:
        yield
        return
    timer = threading.Timer(max(1.0, when - time.time()), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def drop_states(folder: Path) -> None:
    """Remove what a run would go on from."""
    for state in folder.glob("state-*"):
        shutil.rmtree(state)


def inside(folder: Path) -> dict[str, float]:
    """Mean probability inside the own masks, of text and image maps, at the end of a training."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    return {name: last[name] for name in MEASURES if name.endswith("inside")}


@torch.no_grad()
def draw_all(task: MMDiffTask, cells: dict[str, int], folder: Path, batch: int = 128) -> None:
    """The sheets of all questions; the same noise for every adapter."""
    for name, number in cells.items():
        question = ASKED.get(name, ASKED["two different"])
        images = []
        for start in range(0, number, batch):
            stop = min(start + batch, number)
            trials = [make_trial(question, SEED, i) for i in range(start, stop)]
            examples = [trial.example for trial in trials]
            if name == LEAKAGE:
                examples = [replace(e, subjects=e.subjects[:1]) for e in examples]
            images.append(draw(task, examples).cpu())
        save_sheet(torch.cat(images), sheet_of(folder, name))


def sheet_of(folder: Path, name: str) -> Path:
    """Where the images of a question are."""
    return folder / f"{name.replace(' ', '_')}.png"


# ---------------------------------------------------------------- scoring


def score_all(folder: Path, cells: dict[str, int]) -> dict:
    """Counts of every run whose images are there; those that are counted already stay.

    {"ARM-SEED": {question: counts, "leakage": number, ...}}
    """
    torch.set_num_threads(1)
    out = folder / "results.json"
    results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    reader = load_reader()
    for facts in sorted(folder.glob("*/facts.json")):
        own = results.setdefault(facts.parent.name, {})
        own["facts"] = json.loads(facts.read_text(encoding="utf-8"))
        for name, question in ASKED.items():
            if own.get(name, {}).get("pictures", 0) < cells[name]:
                own[name] = scored(facts.parent, question, cells[name], reader)
                out.write_text(json.dumps(results, indent=1), encoding="utf-8")
        own[LEAKAGE] = leakage_of(facts.parent, cells)
        out.write_text(json.dumps(results, indent=1), encoding="utf-8")
        log.info("%s scored", facts.parent.name)
    return results


def scored(folder: Path, question: Question, number: int, reader) -> dict:
    """Counts of one question."""
    images = load_sheet(sheet_of(folder, question.name), number, scenes.SIDE)
    trials = [make_trial(question, SEED, i) for i in range(number)]
    return asdict(count(trials, images, reader))


def leakage_of(folder: Path, cells: dict[str, int]) -> float:
    """Mean absolute difference in 0..255, where the first subject stands, between images of both
    subjects and images of the first with the second as its bare class."""
    question, number = ASKED["two different"], cells[LEAKAGE]
    both = load_sheet(sheet_of(folder, question.name), number, scenes.SIDE)
    bare = load_sheet(sheet_of(folder, LEAKAGE), number, scenes.SIDE)
    apart = []
    for i in range(number):
        trial = make_trial(question, SEED, i)
        match = score.find(both[i], trial.wanted[:1], 1)[0]
        region = score.region_of(trial.wanted[0], match)
        apart.append(float((both[i] - bare[i]).abs()[:, region].mean()) * 255)
    return sum(apart) / len(apart)
