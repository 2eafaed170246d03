"""The protocol "small world": its questions drawn and scored, with the report of the others.

Likeness is the cosine of the small world's own image encoder, which the adapter reads too; the
exact ruler, which shares nothing with it, names the failures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..evaluation.extractors import file_hash
from ..evaluation.intervals import SEED as BOOTSTRAP_SEED
from ..evaluation.results import Bound, Column, ImageResult, Results, Row
from ..host import small_world
from ..host.frozen_base.build import load_task
from ..small_world import scenes, score, sizes
from ..small_world.trials import QUESTIONS, STRANGERS, Question, Trial, make_trial, true_image
from .answers import SEED, draw_floor, draw_with, load_embed, load_reader

OURS, PLAIN = "MM-Diff", "plain base"
ASKED = tuple(q for q in QUESTIONS if not q.look_alike)
COLUMNS = (
    Column("likeness", "likeness, cosine of its encoder", "likeness"),
    Column("prompt", "classes and background as the prompt says", "prompt"),
    Column("exact", "subjects right, exact ruler", "people"),
    Column("complete", "images with all subjects right", "people"),
    Column("seen", "subjects seen, second ruler", "people"),
)
WORDS = {
    "mixture": "a mixture of two subjects",
    "swap": "a subject in another's class",
    "duplicate": "a subject drawn twice",
    "stranger": "somebody nobody asked for",
    "missing": "nothing recognisable",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rulers:
    """What scores an image; the second ruler may be left out."""

    embed: score.Embed
    reader: score.Reader
    second: score.EncoderRuler | None

    @classmethod
    def load(cls, second: bool = True) -> Rulers:
        embed = load_embed()
        return cls(embed, load_reader(), score.EncoderRuler(embed) if second else None)

    def values(self, trial: Trial, image: Tensor) -> tuple[dict[str, float], tuple[str, ...]]:
        """The columns of one image [3 S S] in 0..1, and its failures in words."""
        named = score.binding(image, trial.wanted, trial.strangers[:STRANGERS])
        kinds, place = self.reader.read(image[None])[0]
        right = score.truth(trial.scene)
        values = {
            "likeness": self.likeness(trial, image),
            "prompt": ((kinds == right[0]) + (place == right[1])) / 2,
            "exact": sum(v == "own" for v in named.verdicts) / len(named.verdicts),
            "complete": float(named.complete),
        }
        if self.second is not None:
            seen = self.second.sees(image, trial.wanted, trial.strangers)
            values["seen"] = sum(seen) / len(seen)
        failures = [WORDS[verdict] for verdict in named.verdicts if verdict != "own"]
        if kinds != right[0]:
            failures.append("other classes than asked for")
        if place != right[1]:
            failures.append("another background")
        return values, tuple(dict.fromkeys(failures))

    def likeness(self, trial: Trial, image: Tensor) -> float:
        """Mean over the subjects of the best cosine of their clean reference, whatever reference
        was given, with what stands in their class's silhouette, anywhere in the image."""
        best = []
        for kind, who in trial.wanted:
            clean = torch.from_numpy(scenes.reference(kind, who)).movedim(-1, 0)[None]
            given, shown = self.embed(clean), self.embed(score.windows(image, kind))
            best.append(float(torch.cosine_similarity(given, shown).max()))
        return float(np.mean(best))


@dataclass(frozen=True)
class Asked:
    """A trial, and where its images and references are."""

    question: Question
    number: int
    trial: Trial
    folder: Path

    @property
    def place(self) -> str:
        return f"{self.question.name.replace(' ', '_')}/{self.number}"

    def file(self, row: str) -> Path:
        return self.folder / row.replace(" ", "_") / "images" / self.place / "0.png"

    def references(self) -> list[Path]:
        """Each subject's first reference, written where it is not yet."""
        files = []
        for i, subject in enumerate(self.trial.example.subjects):
            path = self.folder / "references" / self.place / f"{i}.png"
            if not path.is_file():
                save_image(subject.references[0], path)
            files.append(path)
        return files


def run_small_world(out: Path, count: int, adapter: Path | None, command: str, say: Say) -> Results:
    """Draw and score `count` images of each row, in equal parts of each question; images that are
    there are not drawn again.

    adapter  of the small world; None = the one in the pack
    """
    torch.set_num_threads(1)
    path = adapter or small_world.find(small_world.WEIGHTS, "adapter")[0]
    each = max(count // len(ASKED), 1)
    asked = [
        Asked(question, number, make_trial(question, SEED, number), out)
        for question in ASKED
        for number in range(each)
    ]
    task = load_task(path)
    for row, without in ((OURS, False), (PLAIN, True)):
        _draw(task, row, without, asked, say)
    task.bridge.close()
    rulers = Rulers.load()
    rows = tuple(_row(name, asked, rulers, say) for name in (OURS, PLAIN))
    base = [f for name in small_world.FILES for f in small_world.find(small_world.WEIGHTS, name)]
    models = {file.name: file_hash(file) for file in base}
    return Results(
        "small-world",
        "Small world",
        COLUMNS,
        rows,
        _bounds(asked, rulers),
        models=models,
        weights={path.name: file_hash(path)},
        command=command,
        seed=BOOTSTRAP_SEED,
        notes=_notes(each),
    )


def _draw(task, row: str, without: bool, asked: Sequence[Asked], say: Say, batch: int = 16) -> None:
    left = [each for each in asked if not each.file(row).is_file()]
    for question in ASKED:
        own = [each for each in left if each.question == question]
        answer = draw_with(task, question, without)
        for start in range(0, len(own), batch):
            part = own[start : start + batch]
            images = answer([each.trial for each in part])
            for each, image in zip(part, images, strict=True):
                save_image(image, each.file(row))
            say(f"{row}, {question.name}: {start + len(part)} of {len(own)} images drawn")


def save_image(image: Tensor, path: Path) -> None:
    """An image [3 S S] in 0..1 as a PNG of its own dots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dots = (image.detach().float().clamp(0, 1) * 255).round().byte().movedim(0, -1)
    temporary = path.with_suffix(".part")
    Image.fromarray(dots.numpy()).save(temporary, "PNG")
    temporary.replace(path)


def load_image(path: Path) -> Tensor:
    with Image.open(path) as opened:
        dots = np.asarray(opened.convert("RGB"), np.float32) / 255
    return torch.from_numpy(dots).movedim(-1, 0)


def _row(name: str, asked: Sequence[Asked], rulers: Rulers, say: Say) -> Row:
    images = []
    for each in asked:
        values, failures = rulers.values(each.trial, load_image(each.file(name)))
        told = (each.question.name, each.place, each.number, each.trial.scene.caption)
        files = tuple(map(str, each.references()))
        images.append(ImageResult(str(each.file(name)), *told, files, values, failures))
    say(f"{name}: {len(images)} images scored")
    told = {"settings": {"sampling": str(sizes.SAMPLING), "seed": SEED}}
    return Row(name, tuple(images), len(images), told)


def _bounds(asked: Sequence[Asked], rulers: Rulers) -> dict[str, Bound]:
    """Of perfect renderings: of individuals that nobody asked for, and of those asked for."""
    rows, trials = [], [each.trial for each in asked]
    true = torch.stack([true_image(trial.scene) for trial in trials])
    for name, images in (("floor", draw_floor(trials)), ("oracle", true)):
        made = []
        for each, image in zip(asked, images, strict=True):
            values, _ = rulers.values(each.trial, image)
            told = ("", each.question.name, each.place, each.number, "", (), values)
            made.append(ImageResult(*told))
        rows.append(Row(name, tuple(made), len(made)))
    floor, oracle = rows
    return {c.name: Bound(floor.summary(c.name), oracle.summary(c.name)) for c in COLUMNS}


def _notes(each: int) -> tuple[str, ...]:
    names = ", ".join(question.name for question in ASKED)
    return (
        f"{each} images of each question ({names}), of individuals that no training image shows; "
        "both rows start from the same noise.",
        "Likeness is the cosine of the encoder that the adapter reads too; the exact ruler and "
        "the second ruler are in mmdiff_core/small_world/README.md.",
        "Floor: perfect renderings of individuals nobody asked for. Oracle: perfect renderings of "
        "those asked for.",
        "Intervals are 95 %, by bootstrap over the individuals of each image (10,000 resamples, "
        f"seed {BOOTSTRAP_SEED}).",
    )
