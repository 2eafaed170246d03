"""Subjects: what is encoded and saved, how one prompt uses it, and where it may act.

Shapes   R references · N tokens (4 R) · D context width · C CLS width · W vision width · L patches
         with CLS
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from unicodedata import category

from torch import Tensor

from ..untrusted import quoted

MAX_WEIGHT = 10.0  # of a subject; far beyond what is useful
NEXT = "subj"  # in a marker: the next subject in order
NOT_IN_NAMES = "<>|{}"  # those of markers, and of the web page's dynamic prompts
NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # Unicode: control characters, line separators
LONGEST_NAME = 100  # characters
TOKENS, NOUNS, SELF = "tokens", "nouns", "self"  # what a region holds; SELF: self-attention


@dataclass(frozen=True, eq=False)
class VisionFeatures:
    """Features of all references of one subject, float32.

    cls       [R C]   projected CLS embedding of the adapter's partly fine-tuned image encoder
    patches   [R L W] penultimate hidden states (CLS first) of the untouched image encoder
    query     [R Q]   what the query tokens are made from: unit ArcFace embedding (portrait) or
              `cls` (general)
    """

    cls: Tensor
    patches: Tensor
    query: Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """One encoded subject, as it is saved. Never changed after it was made.

    tokens      [N D] detail-rich tokens of all references; [0 D] for one without (clip_only)
    words       {encoder: [width]} its embedding for each text encoder, from the first reference
    references  number of reference images
    adapter     fingerprint of the adapter that made it
    encoder     fingerprint of the image encoder that read the references; "" = not known
    identity    [Q] unit vector to compare subjects by (mean of the references' face or CLS
                embeddings), or None
    thumbnails  [R 64 64 3] uint8, what the image encoder read, or None
    """

    name: str
    tokens: Tensor
    words: dict[str, Tensor]
    references: int
    adapter: str
    encoder: str = ""
    identity: Tensor | None = None
    thumbnails: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> Subject:
        return self


@dataclass(frozen=True)
class FindRegions:
    """How the regions of subjects are found from their attention maps while sampling.

    settle      fraction of the denoising, 0..1, after which the regions hold; before it every
                subject is free
    update      whether they follow the maps from then on, or stay as they were found
    sharpness   0 = regions overlap fully; at 8 nearly every position is one subject's alone
    image_share 0..1, weight of the image maps beside the noun maps
    """

    settle: float = 0.3
    update: bool = False
    sharpness: float = 4.0
    image_share: float = 0.5


@dataclass(frozen=True, eq=False)
class Region:
    """Where a subject may act, and what of it is kept there.

    mask        [H W] in 0..1, or None = everywhere
    find        how a region is found while sampling, or None; the same for all of a prompt
    hold_tokens whether the region holds the subject's tokens
    hold_nouns  whether it holds the subject's nouns in the text
    bound_self_attention  whether positions inside it attend to none inside another subject's
    """

    mask: Tensor | None = None
    find: FindRegions | None = None
    hold_tokens: bool = True
    hold_nouns: bool = False
    bound_self_attention: bool = False

    @property
    def limits_base(self) -> bool:
        """Whether it restricts the base's own attention, to its text or to itself."""
        return (self.hold_nouns or self.bound_self_attention) and self.is_somewhere

    @property
    def is_somewhere(self) -> bool:
        """Whether it is a part of the image, given or found."""
        return self.mask is not None or self.find is not None


ANYWHERE = Region()


@dataclass(frozen=True, eq=False)
class PromptSubject:
    """A subject as one prompt uses it.

    weight      factor on its image branch; 1 = as trained
    per_image   further factors for the images of a batch, the last one for all that follow;
                empty = 1 for all
    """

    subject: Subject
    weight: float = 1.0
    per_image: tuple[float, ...] = ()
    region: Region = ANYWHERE

    @property
    def name(self) -> str:
        return self.subject.name

    def masked(self, mask: Tensor | None) -> PromptSubject:
        return self.within(mask=mask)

    def within(self, **changes) -> PromptSubject:
        """The same with another region: `changes` are fields of `Region`."""
        return replace(self, region=replace(self.region, **changes))

    def at_image(self, index: int) -> float:
        """The factor for image `index` of a batch, beside `weight`."""
        return self.per_image[min(index, len(self.per_image) - 1)] if self.per_image else 1.0

    def __deepcopy__(self, memo: dict) -> PromptSubject:
        return self


Subjects = tuple[PromptSubject, ...]


def name_key(name: str) -> str:
    """What names of subjects are compared by: their case and outer spaces do not count."""
    return name.strip().casefold()


def checked_name(name: str, what: str = "the subject") -> str:
    """A name without its outer spaces. ValueError for one that no marker `<|name|>` can name."""
    name = name.strip()
    if not name:
        raise ValueError(f"{what} has no name; give it one, for example the person's first name")
    if len(name) > LONGEST_NAME:
        raise ValueError(
            f"the name {quoted(name)} has {len(name)} characters, at most {LONGEST_NAME}; use a "
            "shorter one"
        )
    bad = next((c for c in name if c in NOT_IN_NAMES or category(c) in NO_TEXT), None)
    if bad is not None:
        raise ValueError(
            f"the name {quoted(name)} contains {bad!r}, so that no marker <|name|> could name it; "
            "use a name without < > | { } and line breaks"
        )
    if name_key(name) == NEXT:
        raise ValueError(
            f"the name {name!r} is reserved: <|{NEXT}|> in a prompt means the next subject; use "
            "another name"
        )
    return name


def add_subject(subjects: Subjects, added: PromptSubject) -> Subjects:
    """The chain one longer. ValueError when the name cannot be used in a prompt or is taken, or the
    adapters differ."""
    checked_name(added.name)
    if name_key(added.name) in (name_key(s.name) for s in subjects):
        raise ValueError(
            f"there is already a subject named {added.name!r}; give each subject a unique name"
        )
    if subjects and subjects[0].subject.adapter != added.subject.adapter:
        raise ValueError(
            f"subject {added.name!r} was encoded with another MM-Diff adapter than "
            f"{subjects[0].name!r}; encode all subjects of a prompt with the same Load MM-Diff node"
        )
    return (*subjects, added)


def count_tokens(subjects: Subjects) -> list[int]:
    """Number of tokens of each subject."""
    return [len(s.subject.tokens) for s in subjects]


def numbers(text: str, what: str, most: float | None = None) -> tuple[float, ...]:
    """Numbers of at least 0, as a person writes them: "1, 0.5, 0". ValueError names the one that is
    none, and refuses "0,5", which may be one number or two."""
    parts = text.replace(";", " ").split()
    commas = [part for part in parts if "," in part.strip(",")]
    if commas and (len(parts) > 1 or commas[0].strip(",").count(",") == 1):
        raise ValueError(
            f"{what}: {quoted(commas[0])} may be one number or two; write a decimal point (0.5), "
            'or a space after the comma ("0, 5")'
        )
    found = []
    for part in text.replace(";", " ").replace(",", " ").split():
        value = _number(part)
        if not 0 <= value < math.inf or (most is not None and value > most):
            limit = "" if most is None else f" to {most:g}"
            raise ValueError(
                f'{what}: {quoted(part)} is not a number from 0{limit}; write "1, 0.5, 0"'
            )
        found.append(value)
    return tuple(found)


def _number(text: str) -> float:
    """The number a text is, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan
