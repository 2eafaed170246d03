"""A run of the evaluation: adapters, questions, and the file that keeps the counts."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..host.frozen_base.build import load_task
from ..small_world.score import EncoderRuler
from ..small_world.trials import MORE_QUESTIONS, QUESTIONS, Question
from ..training.task import MMDiffTask
from .answers import (
    Draw,
    ask,
    draw_ceiling,
    draw_floor,
    draw_told,
    draw_with,
    load_embed,
    load_reader,
)
from .measures import exchange, gain, inside, leakage

log = logging.getLogger(__name__)
BASE, TOLD, FLOOR, CEILING = "no adapter", "told in words", "floor", "ceiling"


def asked(only: Sequence[str], more: bool) -> list[Question]:
    """The questions of these names; without names the usual ones, or all.

    ValueError for a name that is not there.
    """
    known = {question.name: question for question in (*QUESTIONS, *MORE_QUESTIONS)}
    for name in only:
        if name not in known:
            raise ValueError(f"there is no question {name!r}; there are: {', '.join(known)}")
    if only:
        return [known[name] for name in only]
    return [*QUESTIONS, *(MORE_QUESTIONS if more else ())]


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Adapters by name. ValueError when two have the same one, or a file is not there."""
    adapters: dict[str, Path] = {}
    for path in paths:
        name = path.absolute().parent.name if path.stem == "adapter" else path.stem
        if name in adapters:
            raise ValueError(
                f"{path} and {adapters[name]} would both be {name!r} in the table; rename one"
            )
        if not path.is_file():
            raise ValueError(
                f"{path} is not there; expected the adapter.safetensors of a training run"
            )
        adapters[name] = path
    return adapters


@dataclass(frozen=True)
class Wanted:
    """What an evaluation asks.

    images      of every cell
    only        names of questions; empty = the usual ones
    more        also the questions about references, masks and unseen pairs
    no_adapter  also the base alone
    floor       also the floor and the ceiling
    told        also the base alone, told in words how the individuals look
    exchange    also how far one subject changes where the other is exchanged
    looked_at   images of every cell that the second ruler sees too; None = all
    """

    images: int = 512
    only: tuple[str, ...] = ()
    more: bool = False
    no_adapter: bool = False
    floor: bool = False
    told: bool = False
    exchange: bool = False
    looked_at: int | None = None


class Evaluation:
    """Answers are counted, and written after each cell; a finished cell is not asked again."""

    def __init__(self, out: Path, wanted: Wanted):
        self.out, self.wanted = out, wanted
        self.results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        self.questions = asked(wanted.only, wanted.more)
        self.reader, self.second = load_reader(), EncoderRuler(load_embed())

    def answer(self, name: str, question: Question, how: Draw) -> None:
        """Ask one question of one adapter."""
        cells, images = self.results.setdefault(name, {}), self.wanted.images
        if cells.get(question.name, {}).get("pictures", 0) >= images:
            return
        began = time.time()
        looked_at = self.wanted.looked_at
        tally = ask(how, question, images, self.reader, self.second, looked_at)
        cells[question.name] = vars(tally)
        seconds = time.time() - began
        log.info("%s, %s: %s (%.0f s)", name, question.name, cells[question.name], seconds)
        self.save()

    def save(self) -> None:
        """Write the results."""
        self.out.write_text(json.dumps(self.results, indent=1), encoding="utf-8")


def run_all(out: Path, adapters: Sequence[Path], wanted: Wanted) -> dict:
    """Every adapter's answers. ValueError for a question or an adapter that is not there."""
    torch.set_num_threads(1)
    paths: dict[str, Path | None] = {BASE: None} if wanted.no_adapter else {}
    paths |= named(adapters)
    run = Evaluation(out, wanted)
    answer_alone(run, wanted)
    for name, path in paths.items():
        task = load_task(path)
        for question in run.questions:
            run.answer(name, question, draw_with(task, question, without=path is None))
        if path is not None and not wanted.only:
            measure(task, run.results[name], min(wanted.images, 256))
        if path is not None and wanted.exchange:
            exchange_all(task, run, run.results[name])
        run.save()
        task.bridge.close()
    return run.results


def answer_alone(run: Evaluation, wanted: Wanted) -> None:
    """The answers that need no adapter, as far as they are wanted."""
    base = load_task(None)
    for question in run.questions:
        if wanted.floor:
            run.answer(FLOOR, question, draw_floor)
            run.answer(CEILING, question, draw_ceiling(base))
        if wanted.told:
            run.answer(TOLD, question, draw_told(base))
    base.bridge.close()


def exchange_all(task: MMDiffTask, run: Evaluation, cells: dict) -> None:
    """How far the first subject changes with the other one, for each question asked of two."""
    found = cells.setdefault("exchange", {})
    for question in run.questions:
        if question.subjects == 2 and question.name not in found:
            found[question.name] = exchange(task, min(run.wanted.images, 256), question)
            run.save()


def measure(task: MMDiffTask, cells: dict, pictures: int) -> None:
    """What is no question: the maps inside the masks, the gain of the references, the leakage."""
    if "inside" not in cells:
        cells["inside"] = inside(task, pictures)
        cells["gain"] = gain(task, pictures)
    if "leakage" not in cells:
        two = [q for q in QUESTIONS if q.subjects == 2]
        cells["leakage"] = {q.name: leakage(task, pictures, q) for q in two}
