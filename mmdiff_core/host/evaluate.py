"""Command: what each part of the method contributes, measured in the small world.

    python -m mmdiff_core.host.evaluate OUT.json ADAPTER.safetensors [more ...] [--pictures 512] [--no-adapter]
                                        [--more | --only QUESTION ...]
    python -m mmdiff_core.host.evaluate OUT.json [OTHER.json ...] --table

Every adapter answers the same trials from the same noise. An adapter's name is its file's, or its folder's where the file is called
adapter.safetensors, as a training run leaves it. OUT.json keeps the counts; `--table` prints those of all files as Markdown. A run that
was stopped goes on where it was.
"""
from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import checkpoint
from ..small_world import sizes
from ..small_world.score import Reader
from ..small_world.trials import MORE_QUESTIONS, QUESTIONS, Question, Tally, count, make_trial
from ..training.config import RunConfig
from ..training.example import Example
from ..training.layers import MEASURES
from ..training.noise import draw_noise
from ..training.task import MMDiffTask
from .start import use_comfyui

log = logging.getLogger(__name__)
SEED = 99
BASE = "no adapter"
MEASURED = ("inside", "gain", "cost")       # what is no question
LEVELS = (0.3, 0.6, 0.8, 0.95)
ONLY = 1e4          # weight of the subjects' pixels where the ground's should not count
COLUMNS = ("identity", "bound", "complete", "mixed", "classes", "background")


def load_task(path: Path | None) -> MMDiffTask:
    """An exported adapter on the shipped base, by the run in its header; None = the base without an adapter."""
    from safetensors import safe_open

    from .frozen_base.build import build_task
    if path is None:
        run = RunConfig.from_dict({"base": "small-world", "adapter": {"name": "small-world", "rank": 1, "text_rank": 0, "vision": []}})
        task = build_task(run)
        task.bridge.strength = 0.0
        return task
    with safe_open(str(path), framework="pt") as file:
        run = RunConfig.from_json((file.metadata() or {})["run"])
    return build_task(run, flat=checkpoint.read(path)[1])


def load_reader() -> Reader:
    from .small_world import WEIGHTS, read
    reader = Reader()
    reader.load_state_dict({k: v.float() for k, v in read(WEIGHTS, "reader").items()})
    return reader.eval()


def draw(task: MMDiffTask, examples: Sequence[Example], held: bool = False) -> Tensor:
    """Pictures in dots [B 3 S S], from noise that follows from the trial's number."""
    from .sampling import decode, sample_latents
    noise, _ = draw_noise([e.index for e in examples], (sizes.CHANNELS, 16, 16), 1, SEED)
    with torch.autocast("cpu", torch.bfloat16):
        latents = sample_latents(task, examples, noise, **sizes.SAMPLING, held=held)
    return decode(task, latents.float())[:, ::sizes.DOT, ::sizes.DOT].movedim(-1, 1)


def ask(task: MMDiffTask, question: Question, pictures: int, reader: Reader, batch: int = 32, without: bool = False) -> Tally:
    """All pictures of one question."""
    tally = Tally()
    for start in range(0, pictures, batch):
        trials = [make_trial(question, SEED, i) for i in range(start, min(start + batch, pictures))]
        examples = [replace(t.example, subjects=()) if without else t.example for t in trials]
        tally = tally.merge(count(trials, draw(task, examples, question.held), reader))
    return tally


@torch.no_grad()
def inside(task: MMDiffTask, pictures: int, batch: int = 32) -> dict[str, float]:
    """Mean probability inside the own mask, text and image maps, on true pictures of held-out individuals with two subjects."""
    from ..small_world.examples import SmallWorldExamples
    source = SmallWorldExamples(seed=SEED, split="test", caption_dropout=0, subject_dropout=0, count=2)
    rows = [task(source.batch(start, batch)) for start in range(0, pictures, batch)]
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in MEASURES if name.endswith("inside")}


@torch.no_grad()
def gain(task: MMDiffTask, pictures: int, levels: Sequence[float] = LEVELS, batch: int = 64) -> dict[str, float]:
    """By how much the right references lower the error inside the subjects, against another picture's: 1 - own / swapped, at noise
    levels as fractions of the timesteps, on true pictures of held-out individuals. Far more sensitive than drawn pictures."""
    rows = [_errors(task, start, min(batch, pictures - start), levels) for start in range(0, pictures, batch)]
    own, swapped = torch.stack(rows).sum(0)
    return {f"{level}": 1 - float(a / b) for level, a, b in zip(levels, own, swapped, strict=True)}


def _errors(task: MMDiffTask, start: int, pictures: int, levels: Sequence[float]) -> Tensor:
    """Squared errors inside the subjects, summed over `pictures`, with their own references and with the next picture's: [2 levels]."""
    from ..method.losses import denoising_loss, denoising_target, weigh_subjects
    from ..small_world.examples import SmallWorldExamples
    *own, beyond = SmallWorldExamples(seed=SEED, split="test", caption_dropout=0, subject_dropout=0).batch(start, pictures + 1)
    others = [e.subjects[0].references for e in (*own[1:], beyond)]
    swapped = [replace(e, subjects=tuple(replace(s, references=r) for s in e.subjects)) for e, r in zip(own, others, strict=True)]
    latents = task.bridge.latents(torch.stack([e.pixels for e in own]))
    noise, _ = draw_noise([e.index for e in own], latents.shape[1:], 1, SEED)
    sides, found = [task.conditions(part) for part in (own, swapped)], torch.zeros(2, len(levels))
    inside = weigh_subjects(sides[0].masks, tuple(latents.shape[-2:]), ONLY)
    for column, level in enumerate(levels):
        at = torch.full((pictures,), int(level * (len(task.bridge.alphas) - 1)))
        alpha = task.bridge.alphas[at].view(-1, 1, 1, 1)
        target = denoising_target(task.bridge.prediction_type, latents, noise, alpha.sqrt(), (1 - alpha).sqrt())
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        for row, conditions in enumerate(sides):
            found[row, column] = denoising_loss(task.predict(noisy, at, conditions)[0], target, torch.ones(pictures), inside).sum()
    return found


def asked(only: list[str], more: bool) -> list[Question]:
    """The questions of these names; without names the usual ones, or all. ValueError for a name that is not there."""
    known = {q.name: q for q in (*QUESTIONS, *MORE_QUESTIONS)}
    if wrong := [name for name in only if name not in known]:
        raise ValueError(f"there is no question {wrong[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in only] if only else [*QUESTIONS, *(MORE_QUESTIONS if more else ())]


def named(paths: list[Path]) -> dict[str, Path]:
    """Adapters by name. ValueError when two have the same one, or a file is not there."""
    found: dict[str, Path] = {}
    for path in paths:
        name = path.absolute().parent.name if path.stem == "adapter" else path.stem
        if name in found:
            raise ValueError(f"{path} and {found[name]} would both be {name!r} in the table; rename one of them")
        if not path.is_file():
            raise ValueError(f"{path} is not there; expected the adapter.safetensors of a training run")
        found[name] = path
    return found


def run_all(args: argparse.Namespace) -> dict:
    """Every adapter's answers; written after each cell."""
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    reader, questions = load_reader(), asked(args.only, args.more)
    for name, path in (({BASE: None} if args.no_adapter else {}) | named(args.adapters)).items():
        cells = results.setdefault(name, {})
        task = load_task(path)
        for question in questions:
            if cells.get(question.name, {}).get("pictures", 0) >= args.pictures:
                continue
            began = time.time()
            cells[question.name] = vars(ask(task, question, args.pictures, reader, without=path is None))
            log.info("%s, %s: %s (%.0f s)", name, question.name, cells[question.name], time.time() - began)
            args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
        if path is not None and "inside" not in cells:
            cells["inside"] = inside(task, min(args.pictures, 256))
            cells["gain"] = gain(task, min(args.pictures, 256))
        args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
        task.bridge.close()
    return results


def merged(paths: list[Path]) -> dict:
    """The results of several files as one."""
    results: dict = {}
    for path in paths:
        for name, cells in json.loads(path.read_text(encoding="utf-8")).items():
            results.setdefault(name, {}).update(cells)
    return results


def table(results: dict) -> str:
    """Markdown: a row per adapter and question, shares in per cent with 95 % intervals; then the probabilities inside the masks."""
    lines = ["| adapter | asked | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, cells in results.items():
        for question, counts in cells.items():
            if question in MEASURED:
                continue
            shares = Tally(**counts).shares()
            values = [f"{100 * p:.1f} ({100 * low:.0f}-{100 * high:.0f})" for p, low, high in (shares[c] for c in COLUMNS)]
            lines.append(f"| {name} | {question} | " + " | ".join(values) + " |")
    measured = {name: cells["inside"] for name, cells in results.items() if "inside" in cells}
    levels = " | ".join(f"gain at noise {level}" for level in LEVELS)
    if measured:
        lines += ["", f"| adapter | text maps inside the own mask | image maps | {levels} |", "|---" * (3 + len(LEVELS)) + "|"]
    for name, found in measured.items():
        gains = [f"{100 * value:.1f} %" for value in results[name].get("gain", {}).values()] or ["" for _ in LEVELS]
        lines.append(f"| {name} | {found['text_inside']:.3f} | {found['image_inside']:.3f} | " + " | ".join(gains) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.host.evaluate", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("adapters", type=Path, nargs="*")
    parser.add_argument("--pictures", type=int, default=512, help="of every cell")
    parser.add_argument("--more", action="store_true", help="also the questions about references, masks and unseen pairs")
    parser.add_argument("--only", nargs="+", default=[], metavar="QUESTION", help="these questions alone, by the names in the table")
    parser.add_argument("--no-adapter", action="store_true", help="also the base alone")
    parser.add_argument("--table", action="store_true", help="print the table of OUT.json and of further result files, and stop")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.table:
        sys.stdout.write(table(merged([args.out, *args.adapters])))
        return 0
    use_comfyui(cpu=True)
    try:
        sys.stdout.write(table(run_all(args)))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
