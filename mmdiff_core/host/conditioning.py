"""Subjects travel with the conditioning: each row of a model call is told apart by what its cond
carries.

A cond's `model_conds` are the only part of it that reaches the model (host:
samplers.get_area_and_mult), row by row. There we put a `SubjectRows`: plain Python, so reading it
never waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import comfy.conds

from ..method.subjects import PromptSubject, Subjects
from ..regions.attention_bias import Area
from ..untrusted import quoted_list

KEY = "mmdiff_rows"
SIDE = "mmdiff_side"  # option of a cond that is meant as the negative one
NOT_SERVED = (
    "MM-Diff: this prompt has the subjects {names}, but nothing in the sampling shows them. "
    "Connect Apply MM-Diff Attention, with the same Load MM-Diff, between the model and this "
    "sampler. If it is connected, the sampler does not run ComfyUI's SAMPLER_SAMPLE wrappers: use "
    "KSampler, SamplerCustom or a guider built on CFGGuider"
)


def quote_names(subjects: Sequence[PromptSubject]) -> str:
    """The subjects' names for a message, the first four of them."""
    return quoted_list((subject.name for subject in subjects), 4)


@dataclass(frozen=True, eq=False)
class BoundPrompt:
    """The subjects one personalised prompt shows, and the adapter they belong to. `nouns`: the text
    columns of each one's mentions."""

    subjects: Subjects
    adapter: str
    nouns: tuple[tuple[int, ...], ...] = ()

    @property
    def per_image(self) -> bool:
        """Whether a subject's weight differs between the images of a batch."""
        return any(s.per_image for s in self.subjects)

    @property
    def has_regions(self) -> bool:
        """Whether a subject acts in a part of the image alone: a row must know where it is."""
        return any(s.region.is_somewhere for s in self.subjects)

    @property
    def counts_images(self) -> bool:
        """Whether a row must know its number in the latent batch."""
        return self.per_image or any(s.region.find for s in self.subjects)

    @property
    def shows(self) -> bool:
        """Whether the model has anything to do for it: tokens to show, or nouns or self-attention
        to hold to a region. A subject without tokens (clip_only) is otherwise in the text alone."""
        return any(len(s.subject.tokens) or s.region.limits_base for s in self.subjects)

    def __deepcopy__(self, memo: dict) -> BoundPrompt:
        return self


@dataclass(frozen=True)
class Row:
    """What one row of a model call carries.

    prompt  a bound prompt, or nothing
    area    the part of the image it covers; None = all
    image   its number among the latents its cond was made for, and, once it was located
            (`parts.locate`), in the whole batch; None where nobody asks
    images  how many latents its cond was made for
    placed  whether `area` is that of a tile (`parts.place_rows`)
    """

    prompt: BoundPrompt | None = None
    area: Area | None = None
    image: int | None = None
    images: int = 1
    placed: bool = False

    def continues(self, before: Row) -> bool:
        """Whether this row can be drawn together with the one before it."""
        same = self.prompt is before.prompt and self.area == before.area
        if self.image is None or before.image is None:
            return same
        return same and self.image == before.image + 1


NOTHING = Row()


class SubjectRows(comfy.conds.CONDRegular):
    """A cond entry holding one `Row` per latent of the batch; batches with any other of its
    kind.

    served  whether a run of Apply MM-Diff Attention has seen it: the host asks every cond for its
            rows, so one that nobody serves is noticed here
    """

    def __init__(self, cond: tuple[Row, ...] = (NOTHING,), served: bool = False):
        super().__init__(cond)
        self.served = served

    def process_cond(self, batch_size: int, area=None, **kwargs) -> SubjectRows:
        prompt = self.cond[0].prompt
        if prompt is None or not prompt.shows:
            return SubjectRows((NOTHING,) * batch_size, True)
        if not self.served:
            raise RuntimeError(NOT_SERVED.format(names=quote_names(prompt.subjects)))
        covered = None if area is None else tuple(int(side) for side in area)
        rows = [Row(prompt, covered, i, batch_size) for i in range(batch_size)]
        return SubjectRows(tuple(rows), True)

    def can_concat(self, other) -> bool:
        return isinstance(other, SubjectRows)

    def concat(self, others) -> tuple[Row, ...]:
        return tuple(row for cond in (self, *others) for row in cond.cond)

    def size(self) -> list[int]:
        return [len(self.cond)]

    def __deepcopy__(self, memo: dict) -> SubjectRows:
        return self


def carry(conditioning: list, prompt: BoundPrompt | None, **options) -> list:
    """A copy of CONDITIONING whose rows carry `prompt` (None: rows of ours without subjects)."""
    rows = SubjectRows((Row(prompt),))
    return [
        [tensor, {**old, **options, "model_conds": {**old.get("model_conds", {}), KEY: rows}}]
        for tensor, old in conditioning
    ]


def delayed(plain: list, fused: list, prompt: BoundPrompt | None, start: float) -> list:
    """The plain prompt before `start` (0..1 of the denoising), the fused one with its subjects from
    there on."""
    if start <= 0:
        return carry(fused, prompt)
    if start >= 1:
        return carry(plain, None)
    return carry(plain, None, end_percent=start) + carry(fused, prompt, start_percent=start)


def against(conditioning: list) -> list:
    """CONDITIONING marked as the negative prompt of a personalised one."""
    return [[tensor, {**options, SIDE: "negative"}] for tensor, options in conditioning]


def check_sides(conds: Mapping[str, Sequence[dict]]) -> None:
    """ValueError where a sampler's positive input got the negative output, and the reverse."""
    positive, negative = conds.get("positive") or (), conds.get("negative") or ()
    if any(SIDE in cond for cond in positive) and any(map(_shows_subjects, negative)):
        raise ValueError(
            "positive and negative are swapped: connect the output positive of MM-Diff Text Encode "
            "to the sampler's positive, and negative to negative"
        )


def _shows_subjects(cond: dict) -> bool:
    rows = cond.get("model_conds", {}).get(KEY)
    return isinstance(rows, SubjectRows) and any(row.prompt is not None for row in rows.cond)
