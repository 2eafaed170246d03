"""What travels: features of reference pictures, and the subjects made from them.

Shapes   R references · N tokens (4 R) · D context width · C CLS width · W vision width · L patches with CLS
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class VisionFeatures:
    """Features of all references of one subject, float32.

    cls       [R C]   projected CLS embedding of the adapter's partly fine-tuned image encoder
    patches   [R L W] penultimate hidden states (CLS first) of the untouched image encoder
    query     [R Q]   what the query tokens are made from: unit ArcFace embedding (portrait) or `cls` (general)
    """

    cls: Tensor
    patches: Tensor
    query: Tensor


@dataclass(frozen=True)
class FindRegions:
    """How subjects' regions are found from where they are read while sampling.

    settle      fraction of the denoising, 0..1, after which the regions hold; before it every subject is free
    update      whether they go on following the maps, or stay as they were found
    sharpness   0 = no contest; at 8 a place is nearly one subject's alone
    image_share 0..1, how much the image maps count beside the nouns' maps
    """

    settle: float = 0.3
    update: bool = False
    sharpness: float = 4.0
    image_share: float = 0.5


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject, ready for a prompt and a UNet. Never changed after it was made.

    tokens   [N D] detail-rich tokens of all references
    words    {encoder: [width]} the subject as each text encoder's embedding, from the first reference
    weight   factor on this subject's image branch; 1 = as trained
    pictures further factors for the single pictures of a batch, the last one for all that follow; empty = 1 for all
    mask     [H W] in 0..1 where its tokens may act, or None = everywhere
    hold_tokens, hold_nouns     whether the region (given or found) holds its tokens, and its nouns in the text
    find     how its region is found while sampling, or None; all subjects of a prompt that are found have the same
    adapter  fingerprint of the adapter that made it
    encoder  fingerprint of the image encoder that looked at it; "" = not known
    identity [Q] unit vector to compare subjects by (ArcFace or CLS, mean of the references), or None
    pictures_seen   [R 64 64 3] uint8, small pictures of what the encoder looked at, or None
    """

    name: str
    tokens: Tensor
    words: dict[str, Tensor]
    references: int
    adapter: str
    weight: float = 1.0
    pictures: tuple[float, ...] = ()
    mask: Tensor | None = None
    hold_tokens: bool = True
    hold_nouns: bool = False
    find: FindRegions | None = None
    encoder: str = ""
    identity: Tensor | None = None
    pictures_seen: Tensor | None = None

    def masked(self, mask: Tensor | None) -> Subject:
        return replace(self, mask=mask)

    def at_picture(self, index: int) -> float:
        """The factor for picture `index` of a batch, beside `weight`."""
        return self.pictures[min(index, len(self.pictures) - 1)] if self.pictures else 1.0

    def __deepcopy__(self, memo: dict) -> Subject:
        return self


Subjects = tuple[Subject, ...]


def add_subject(subjects: Subjects, subject: Subject) -> Subjects:
    """The chain one longer. Raises ValueError when the name is taken, in whatever case, or the adapters differ."""
    if subject.name.casefold() in (s.name.casefold() for s in subjects):
        raise ValueError(f"there is already a subject named {subject.name!r}; give each subject a "
                         "unique name")
    if subjects and subjects[0].adapter != subject.adapter:
        raise ValueError(
            f"subject {subject.name!r} was encoded with another MM-Diff adapter than "
            f"{subjects[0].name!r}; encode all subjects of a prompt with the same Load MM-Diff node"
        )
    return (*subjects, subject)


def numbers(text: str, what: str, most: float | None = None) -> tuple[float, ...]:
    """Numbers of at least 0, as a person writes them: "1, 0.5, 0". ValueError names the one that is none."""
    found = []
    for part in re.split(r"[,;\s]+", text.strip()):
        if not part:
            continue
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf or (most is not None and value > most):
            limit = "" if most is None else f" to {most:g}"
            raise ValueError(f'{what}: {part!r} is not a number from 0{limit}; write "1, 0.5, 0"')
        found.append(value)
    return tuple(found)
