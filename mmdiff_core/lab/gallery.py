"""The images behind the evaluation's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..host.frozen_base.build import load_task
from ..host.frozen_base.contact import tile, to_bytes
from ..small_world import score
from ..small_world.trials import STRANGERS, Trial, make_trial
from .answers import SEED, draw
from .evaluate import BASE, asked, named

SIDE = 128


def draw_gallery(
    out: Path, adapters: Sequence[Path], name: str, count: int, no_adapter: bool
) -> None:
    """Save the first trials of a question: the references, then what each adapter draws.

    ValueError for a question or an adapter that is not there.
    """
    question = asked([name], False)[0]
    trials = [make_trial(question, SEED, number) for number in range(count)]
    rows, names = [[squared(references_of(trial)) for trial in trials]], ["references"]
    captions: list[Sequence[str]] = [()]
    paths: dict[str, Path | None] = {BASE: None} if no_adapter else {}
    for adapter, path in (paths | named(adapters)).items():
        task = load_task(path)
        examples = [t.example if path else replace(t.example, subjects=()) for t in trials]
        images = draw(task, examples, question.held)
        rows.append([to_bytes(image.movedim(0, -1)) for image in images])
        captions.append([verdict(t, image) for t, image in zip(trials, images, strict=True)])
        names.append(adapter)
        task.bridge.close()
    out.parent.mkdir(parents=True, exist_ok=True)
    tile(rows, SIDE, names=names, captions=captions).save(out)


def verdict(trial: Trial, image) -> str:
    """What the exact ruler says of an image."""
    named_all = score.binding(image, trial.wanted, trial.strangers[:STRANGERS])
    return "right" if named_all.complete else ", ".join(sorted(named_all.verdicts))


def references_of(trial: Trial) -> np.ndarray:
    """Every subject's first reference, side by side [K nK 3]."""
    shown = [to_bytes(s.references[0].movedim(0, -1)) for s in trial.example.subjects]
    return np.concatenate(shown, 1)


def squared(image: np.ndarray) -> np.ndarray:
    """[h w 3] in the middle of a white square of its longer side."""
    side = max(image.shape[:2])
    out = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out
