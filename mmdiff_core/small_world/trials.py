"""What an adapter is asked in the small world, and how its pictures are counted.

A trial is a prompt with individuals nobody trained on, their references, and what must be seen in
the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..method.subjects import NOUNS, SELF, TOKENS
from ..training.example import Example, ExampleSubject
from . import references, scenes, score, sizes
from .examples import enlarge
from .scenes import Identity, Scene
from .sprites import HELD_OUT_PAIRS

IDENTITY = 8  # candidates of the identity question
STRANGERS = 32  # individuals nobody asked for among the candidates of the binding question
CROWD = 64  # candidates of the second ruler


@dataclass(frozen=True)
class Question:
    """One kind of trial.

    subjects     1 to 3
    kinds        "any" as scenes come, "same" one class for all, "different" classes,
                 "unseen" two classes that no training picture has together
    look_alike   every further individual is hard to tell from the first
    references   per subject; the first is clean unless `covered`
    covered      share of every reference that is hidden
    held         what masks keep where the subjects should stand: TOKENS, NOUNS in the text, SELF
                 for self-attention
    shown        how every reference looks: "clean", or a name of `references.LOOKS`
    places       the scenes' backgrounds in turn; none = as scenes come
    """

    name: str
    subjects: int = 1
    kinds: str = "any"
    look_alike: bool = False
    references: int = 1
    covered: float = 0.0
    held: tuple[str, ...] = ()
    shown: str = "clean"
    places: tuple[str, ...] = ()


HELD = (TOKENS, NOUNS)
COVER = 41  # keeps the draws of a cover's angle apart from the others of a trial
QUESTIONS = (
    Question("one"),
    Question("two different", 2, "different"),
    Question("two of a class", 2, "same"),
    Question("two look-alikes", 2, "same", look_alike=True),
    Question("three", 3),
)
CLEAN = tuple(Question(f"one, {n} references", references=n) for n in (2, 3, 5))
COVERED = tuple(
    Question(f"one, {n} half covered", references=n, covered=0.5) for n in (1, 2, 3, 5)
)
MORE_QUESTIONS = (
    *CLEAN,
    *COVERED,
    Question("two different, held by masks", 2, "different", held=HELD),
    Question("two of a class, held by masks", 2, "same", held=HELD),
    Question("three, held by masks", 3, held=HELD),
    Question("two different, tokens alone held", 2, "different", held=(TOKENS,)),
    Question("two different, self-attention bounded", 2, "different", held=(*HELD, SELF)),
    Question("two of a class, self-attention bounded", 2, "same", held=(*HELD, SELF)),
    Question("three, self-attention bounded", 3, held=(*HELD, SELF)),
    Question("two unseen together", 2, "unseen"),
)


@dataclass(frozen=True, eq=False)
class Trial:
    """A scene that was asked for (its places are known only where masks hold them), and the
    example that asks for it.
    """

    scene: Scene
    example: Example
    strangers: tuple[Identity, ...]

    @property
    def wanted(self) -> list[tuple[str, Identity]]:
        return [(p.kind, p.identity) for p in self.scene.placed]


def make_trial(question: Question, seed: int, index: int) -> Trial:
    """Trial number `index`, always the same one."""
    rng = np.random.default_rng((seed, index, 23))
    scene = _chosen_kinds(question, scenes.scene("test", seed, index, question.subjects), rng)
    if question.look_alike:
        first = scene.placed[0].identity
        scene = replace(
            scene,
            placed=(
                scene.placed[0],
                *(replace(p, identity=scenes.look_alike(rng, first)) for p in scene.placed[1:]),
            ),
        )
    if question.places:
        scene = replace(scene, place=question.places[index % len(question.places)])
    _, masks = scenes.draw(scene)
    angles = np.random.default_rng((seed, index, COVER))
    subjects = []
    for p, span, mask in zip(scene.placed, scene.spans(), masks, strict=True):
        shown = (
            _references(question, rng, p.kind, p.identity)
            if question.shown == "clean"
            else _looking(question, angles, p.kind, p.identity)
        )
        subjects.append(ExampleSubject(span, enlarge(torch.from_numpy(box(mask))), shown))
    side = scenes.SIDE * sizes.DOT
    crowd = tuple(scenes.random_identity(rng, "test") for _ in range(CROWD - 1))
    example = Example(torch.zeros(3, side, side), scene.caption, tuple(subjects), index)
    return Trial(scene, example, crowd)


def box(mask: np.ndarray) -> np.ndarray:
    """The rectangle around a mask [S S], as a person would draw it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    out = np.zeros(mask.shape, np.float32)
    out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1
    return out


def _chosen_kinds(question: Question, scene: Scene, rng: np.random.Generator) -> Scene:
    kinds = [p.kind for p in scene.placed]
    if question.kinds == "same":
        kinds = [kinds[0]] * len(kinds)
    elif question.kinds == "different":
        kinds = [str(k) for k in rng.choice(scenes.CLASSES, len(kinds), replace=False)]
    elif question.kinds == "unseen":
        pairs = sorted(sorted(pair) for pair in HELD_OUT_PAIRS)
        kinds = [str(k) for k in rng.permutation(pairs[rng.integers(len(pairs))])]
    return replace(
        scene, placed=tuple(replace(p, kind=k) for p, k in zip(scene.placed, kinds, strict=True))
    )


def _references(
    question: Question, rng: np.random.Generator, kind: str, identity: Identity
) -> Tensor:
    shown = [
        scenes.reference(kind, identity)
        if i == 0 and not question.covered
        else references.show(kind, identity, references.random_look(rng, question.covered))
        for i in range(question.references)
    ]
    return torch.from_numpy(np.stack(shown)).movedim(-1, 1)


def _looking(
    question: Question, angles: np.random.Generator, kind: str, identity: Identity
) -> Tensor:
    """All references under the question's look; only the cover's angle is another each time."""
    shown = []
    for _ in range(question.references):
        look = references.LOOKS[question.shown]
        if look.covered:
            look = replace(look, cover_angle=float(angles.uniform(0, 2 * np.pi)))
        shown.append(references.show(kind, identity, look))
    return torch.from_numpy(np.stack(shown)).movedim(-1, 1)


@dataclass
class Tally:
    """Counts over the images of one question; shares with intervals through `score.interval`.

    Of the subjects: `identity` (its own class shows it rather than 7 others), the verdicts of
    `score.Binding`, and `seen` (the second ruler). Of the images: `complete` (every verdict is
    "own"), `seen_all`, `classes` and `background` (what the reader sees is what the prompt says).
    The second ruler saw `looked` subjects in `looked_at` images.
    `noise` sums `score.background_noise` over the images that have the background asked for.
    """

    pictures: int = 0
    subjects: int = 0
    identity: int = 0
    own: int = 0
    mixture: int = 0
    swap: int = 0
    duplicate: int = 0
    stranger: int = 0
    missing: int = 0
    seen: int = 0
    complete: int = 0
    seen_all: int = 0
    classes: int = 0
    background: int = 0
    noise: float = 0.0
    looked: int = 0
    looked_at: int = 0

    OF_SUBJECTS: ClassVar = ("identity", *score.VERDICTS, "seen")
    OF_IMAGES: ClassVar = ("complete", "seen_all", "classes", "background")

    def add(
        self,
        trial: Trial,
        image: Tensor,
        read: tuple[dict[str, int], str],
        second: score.EncoderRuler | None,
    ) -> score.Binding:
        """Count one image [3 S S] in 0..1 (dots) and what the reader saw in it."""
        named = score.binding(image, trial.wanted, trial.strangers[:STRANGERS])
        kinds, place = score.truth(trial.scene)
        others = trial.strangers[: IDENTITY - 1]
        self.pictures += 1
        self.subjects += len(trial.wanted)
        for kind, who in trial.wanted:
            self.identity += score.right_identity(image, kind, who, others)
        for verdict in named.verdicts:
            setattr(self, verdict, getattr(self, verdict) + 1)
        self.complete += named.complete
        self.classes += read[0] == kinds
        self.background += read[1] == place
        if read[1] == place:
            clear = score.without_matches(named.matches)
            self.noise += score.background_noise(image, trial.scene, clear)
        if second is not None:
            seen = second.sees(image, trial.wanted, trial.strangers)
            self.looked, self.looked_at = self.looked + len(seen), self.looked_at + 1
            self.seen += sum(seen)
            self.seen_all += all(seen)
        return named

    def merge(self, other: Tally) -> Tally:
        return Tally(**{name: v + getattr(other, name) for name, v in vars(self).items()})

    def shares(self) -> dict[str, tuple[float, float, float]]:
        """Name -> (share, low, high) in 0..1; not a number where nothing was counted."""
        totals = dict.fromkeys(self.OF_SUBJECTS, self.subjects)
        totals |= dict.fromkeys(self.OF_IMAGES, self.pictures)
        totals |= {"seen": self.looked, "seen_all": self.looked_at}
        return {name: score.interval(getattr(self, name), n) for name, n in totals.items()}


def count(
    trials: Sequence[Trial],
    images: Tensor,
    reader: score.Reader,
    second: score.EncoderRuler | None = None,
) -> Tally:
    """Images [B 3 S S] in dots -> counts; `second` None leaves the second ruler out."""
    tally = Tally()
    for trial, image, read in zip(trials, images, reader.read(images), strict=True):
        tally.add(trial, image, read, second)
    return tally


def unrelated(trial: Trial, index: int) -> Tensor:
    """A perfect rendering [3 S S] of the trial's scene with individuals that nobody asked for and
    that are no candidates: what the verdicts are when nothing of the references came through."""
    rng = np.random.default_rng((index, 31))
    others = [replace(p, identity=scenes.random_identity(rng, "test")) for p in trial.scene.placed]
    return true_image(replace(trial.scene, placed=tuple(others)))


def true_image(scene: Scene) -> Tensor:
    """A scene as drawn [3 S S] in 0..1."""
    return torch.from_numpy(scenes.draw(scene)[0].copy()).movedim(-1, 0).float()
