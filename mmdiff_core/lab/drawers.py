"""Who draws the images of an experiment's cells: the adapter, the base, the base fine-tuned on a
subject, the host's sampler in context windows. Each batch's cost is kept beside its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..evaluation.experiments import BASE, EACH, FINE_TUNED, FRAMES, Cell
from ..evaluation.extractors import file_hash
from ..evaluation.kept import begin, read_costs, write_costs
from ..evaluation.manifest import Manifest
from ..host.frozen_base.build import load_task
from ..small_world import sizes
from ..small_world.trials import Trial
from ..training.example import Example
from ..training.task import MMDiffTask
from . import frames
from .answers import SEED, draw
from .costs import Meter
from .finetune import RATE, STEPS, fine_tune
from .protocol import save_image

BATCH = 16
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Drawn:
    """An image that is to be there.

    folder  of its cell
    unit    number of its individual, or of its set of them
    number  of the image among those of the unit
    """

    trial: Trial
    folder: Path
    unit: int
    number: int

    @property
    def place(self) -> str:
        return f"{self.unit}/{self.number}"

    @property
    def file(self) -> Path:
        return self.folder / "images" / f"{self.place}.png"

    def references(self) -> list[Path]:
        """Each subject's first reference as it was given, written where it is not yet."""
        files = []
        for i, subject in enumerate(self.trial.example.subjects):
            path = self.folder / "references" / str(self.unit) / f"{i}.png"
            if not path.is_file():
                save_image(subject.references[0], path)
            files.append(path)
        return files


class Drawers:
    """Draws what is not there. The models of all cells are loaded before the first image, so that
    the cells' memory can be compared; none is loaded where all images are there."""

    def __init__(self, adapter: Path, cells: Sequence[Cell], say: Say) -> None:
        self.adapter, self.cells, self.say = adapter, cells, say
        self._tasks: dict[Path | None, MMDiffTask] = {}
        self._host: frames.HostedWorld | None = None

    def close(self) -> None:
        """Give the models' places in the base back."""
        for task in self._tasks.values():
            task.bridge.close()

    def draw(self, cell: Cell, asked: Sequence[Drawn]) -> None:
        """A cell's images. ValueError where its folder was drawn with other settings."""
        folder = asked[0].folder
        begin(folder, self._manifest(cell))
        size = FRAMES if cell.frames else EACH if cell.drawn_by == FINE_TUNED else BATCH
        costs = read_costs(folder)
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            # a batch belongs together: the noise between the steps follows from the place in it
            if not all(each.file.is_file() and each.place in costs for each in part):
                costs |= self._batch(cell, part)
                write_costs(folder, costs)
                self.say(f"{cell.name}: {start + len(part)} of {len(asked)} images drawn")

    def _manifest(self, cell: Cell) -> Manifest:
        sampling = frames.SAMPLING if cell.frames else sizes.SAMPLING
        told = {name: value for name, value in asdict(cell).items() if name != "name"}
        told["held"] = " ".join(cell.held)
        if cell.drawn_by == FINE_TUNED:
            told |= {"steps of fine-tuning": STEPS, "rate of fine-tuning": RATE}
        models = {self.adapter.name: file_hash(self.adapter)}
        settings = {**told, **sampling, "seed": SEED}
        return Manifest("the small world's lab", "experiment", "", settings, models)

    def _batch(self, cell: Cell, asked: Sequence[Drawn]) -> dict[str, dict[str, float]]:
        """Draw and save images; place -> what each cost."""
        self._load()
        drawer, once = self._drawer(cell, asked[0])
        with Meter() as meter:
            images = drawer([each.trial for each in asked])
        for each, image in zip(asked, images, strict=True):
            save_image(image, each.file)
        cost = {"seconds": meter.seconds / len(asked), "memory": meter.memory}
        if once is not None:
            known = [m.memory for m in (meter, once) if m.memory is not None]
            cost |= {"once": once.seconds, "memory": max(known, default=None)}
        return {each.place: cost for each in asked}

    def _load(self) -> None:
        for cell in self.cells:
            if cell.host:
                self._host = self._host or frames.load_host(self.adapter)
            elif cell.drawn_by != FINE_TUNED:
                self._task(None if cell.drawn_by == BASE else self.adapter)

    def _drawer(
        self, cell: Cell, first: Drawn
    ) -> tuple[Callable[[Sequence[Trial]], Tensor], Meter | None]:
        """Trials -> images [B 3 S S]; and what it cost to make it for their subject."""
        if cell.host:
            return lambda t: frames.draw_by_host(self._host, cell, t[0], len(t)), None
        if cell.drawn_by == FINE_TUNED:
            return self._fine_tuned(first)
        task = self._task(None if cell.drawn_by == BASE else self.adapter)
        if cell.frames:
            return lambda t: frames.draw_frames(task, cell, t[0], len(t)), None
        if cell.drawn_by == BASE:
            return lambda t: draw(task, _without(t)), None
        return lambda t: draw(task, [each.example for each in t], cell.held), None

    def _task(self, adapter: Path | None) -> MMDiffTask:
        """Loaded once, and warm: a first image that nobody sees, so that no cell pays for it."""
        if adapter not in self._tasks:
            self._tasks[adapter] = load_task(adapter)
            side = sizes.UNET["image_size"] * 8
            blank = Example(torch.zeros(3, side, side), "a ghost at night", ())
            draw(self._tasks[adapter], [blank])
        return self._tasks[adapter]

    def _fine_tuned(self, first: Drawn) -> tuple[Callable[[Sequence[Trial]], Tensor], Meter]:
        """The base, fine-tuned on the subject of these images, as `finetune.compare` does it."""
        task, (kind, _) = load_task(None), first.trial.wanted[0]
        (subject,) = first.trial.example.subjects
        with Meter() as meter:
            fine_tune(task, kind, subject.references.float(), first.unit)
        self.say(f"fine-tuned on one subject in {meter.seconds:.0f} s")
        return lambda t: draw(task, _without(t)), meter


def _without(trials: Sequence[Trial]) -> list:
    return [replace(trial.example, subjects=()) for trial in trials]
