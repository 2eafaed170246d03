"""The last stage of the small world's adapter with a matching reward: its training, and what it is
worth, trial by trial."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..checkpoints import checkpoint
from ..host.frozen_base.build import build_task, load_task
from ..host.frozen_base.run import export_with
from ..small_world.examples import SmallWorldExamples
from ..small_world.score import binding
from ..small_world.trials import STRANGERS, Question, make_trial
from ..training.config import RunConfig
from ..training.run.config import LoopConfig
from ..training.run.loop import fit
from ..training.run.report import Report
from ..training.task import MMDiffTask
from .answers import SEED, draw
from .evaluate import asked
from .matching_reward import RewardedTask, Stage
from .shown_individuals import ShownIndividuals

log = logging.getLogger(__name__)
BATCH = 32  # images drawn at once, as the evaluation draws them: from the same noise
EXAMPLES = 700  # seed of the stage's scenes, none of which the adapter has seen


@dataclass(frozen=True)
class Wanted:
    """How the stage runs; the loop is that of every training.

    init   the adapter that it starts from
    steps  of the optimizer
    batch  examples of a step, of which `stage.images` are drawn
    rate   of AdamW, constant after the warm-up
    stage  what is drawn, and how it counts
    """

    init: Path
    steps: int = 300
    batch: int = 16
    rate: float = 2e-4
    stage: Stage = Stage()
    save_every: int = 20


def run_of(wanted: Wanted) -> RunConfig:
    """The run of the adapter's own header, with the stage's data and loop and without the
    objectives that its first stages had."""
    header = checkpoint.header_of(wanted.init)
    run = RunConfig.from_header(header, wanted.init.name)
    objective = replace(
        run.objective,
        identity_weight=0.0,
        described_first=0,
        subject_weight=1.0,
        subject_weight_until=0,
    )
    loop = {
        "steps": wanted.steps,
        "batch": wanted.batch,
        "learning_rate": wanted.rate,
        "betas": [0.9, 0.99],
        "weight_decay": 0.0,
        "warmup_steps": 5,
        "ema_decay": 0.97,
        "save_every": wanted.save_every,
        "keep_last": 1,
        "log_every": 1,
        "tracker": None,
    }
    data = {"kind": "small-world", "seed": EXAMPLES}
    return replace(run, objective=objective, loop=loop, data=data)


def train(folder: Path, wanted: Wanted, command: str) -> Report:
    """Train the stage; `folder` receives states, metrics.jsonl and adapter.safetensors. A run that
    it holds is continued."""
    run, flat = run_of(wanted), checkpoint.read(wanted.init)[1]
    source = SmallWorldExamples(seed=EXAMPLES)
    task = RewardedTask(build_task(run, flat=flat), wanted.stage, ShownIndividuals(source))
    write = export_with(run, task, command, wanted.init)

    def export(weights, path: Path, facts: dict) -> None:
        write(weights, path, facts | {"stage": json.dumps(asdict(wanted.stage))})

    loop = LoopConfig.from_dict({"seed": run.seed, **run.loop})
    try:
        return fit(task, source, loop, folder, export=export)
    finally:
        task.bridge.close()


# ---------------------------------------------------------------- what it is worth


@torch.no_grad()
def right(task: MMDiffTask, question: Question, start: int, stop: int) -> list[bool]:
    """Whether each of these trials' images shows every wanted individual, by the exact ruler."""
    trials, found = [make_trial(question, SEED, number) for number in range(start, stop)], []
    images = draw(task, [trial.example for trial in trials], question.held)
    for image, trial in zip(images, trials, strict=True):
        found.append(binding(image, trial.wanted, trial.strangers[:STRANGERS]).complete)
    return found


def compare(
    out: Path, adapters: Sequence[Path], questions: Sequence[str], images: int
) -> dict[str, dict[str, list[bool]]]:
    """{question: {adapter: whether each image is right}}, of the same trials from the same noise.
    `out` keeps them after every batch; a run that was stopped is continued. ValueError for a
    question that is not there."""
    results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    for adapter in adapters:
        task = None
        for question in asked(questions, False):
            kept = results.setdefault(question.name, {}).setdefault(str(adapter), [])
            if len(kept) < images:  # noise between the steps follows from the place in a batch
                del kept[len(kept) // BATCH * BATCH :]
            for start in range(len(kept), images, BATCH):
                task = task or load_task(adapter)
                kept += right(task, question, start, min(start + BATCH, images))
                log.info("%s, %s: %d of %d", adapter, question.name, sum(kept), len(kept))
                out.write_text(json.dumps(results), encoding="utf-8")
        if task is not None:
            task.bridge.close()
    return results


def paired(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int, float, float]:
    """Trials of two adapters -> how many only the first, and only the second one has right; the
    difference of their shares and half its 95 % interval, in 0..1."""
    both = list(zip(before, after, strict=True))
    lost, won = both.count((True, False)), both.count((False, True))
    difference = (won - lost) / len(both)
    spread = ((won + lost) / len(both) - difference**2) / len(both)
    return lost, won, difference, 1.96 * spread**0.5


def table(results: dict[str, dict[str, list[bool]]]) -> str:
    """Markdown; every adapter beside the first one."""
    lines = [
        "| question | adapter | images | all right | only the first | only this one | difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for question, by_adapter in results.items():
        first = next(iter(by_adapter.values()))
        for name, own in by_adapter.items():
            n = min(len(first), len(own))
            lost, won, apart, half = paired(first[:n], own[:n])
            share, told = sum(own[:n]) / n, f"{lost} | {won} | {100 * apart:+.1f}"
            told += f" ({100 * (apart - half):+.1f} to {100 * (apart + half):+.1f})"
            if own is first:
                told = " | | "
            lines.append(f"| {question} | {name} | {n} | {100 * share:.1f} % | {told} |")
    return "\n".join(lines) + "\n"
