"""Training examples from annotated pictures: number in, example out; nothing else decides what it is.

Shapes   H W picture · h w bucket · n segments · R references · L side of a crop · S side of the image encoder's input
"""
from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .augment import BLACK, Augmentation, apply_look, cut_out, on_background, random_look, resize
from .buckets import BucketOrder, bucket_sizes, fit, nearest_bucket, permutation, seeded
from ..example import Example, ExampleSubject
from .records import BrokenRecord, Record, check_share

log = logging.getLogger(__name__)

Face = tuple[Tensor, Tensor]                    # unit embedding [512], aligned crop [3 S S] in 0..1
Faces = Callable[[Tensor], "Face | None"]       # a subject's crop [3 L L] in 0..1 -> its face, or None where there is none


@dataclass(frozen=True)
class Dropout:
    """Shares of the examples, 0..1, that teach the parts of classifier-free guidance. Each example loses one or the other or nothing.

    caption    the caption is "", and with it go the nouns and their subjects: nothing is given at all
    subjects   the caption stays, all subjects are gone
    """

    caption: float = 0.1
    subjects: float = 0.05

    def __post_init__(self) -> None:
        if min(self.caption, self.subjects) < 0 or self.caption + self.subjects > 1:
            raise ValueError(f"dropout is {self.caption} and {self.subjects}, expected shares from 0 whose sum is at most 1")


@dataclass(frozen=True)
class DataConfig:
    """How pictures become examples. A field outside its range is a ValueError that names it.

    side           pictures have at most side x side pixels, in pixels, from `multiple`
    multiple       heights and widths are multiples of this, in pixels, from 1; latents want 8, SDXL is at ease with 64
    aspect         most of longer by shorter side, from 1
    group          examples that share a bucket, from 1; a multiple of every batch size
    reference_side of the references, in pixels, from 1: the image encoder's input
    references     (fewest, most) references of a subject, from 1
    subjects       most subjects of a picture, from 1; of more, a random choice
    visible        smallest share of a subject's mask, 0..1, that must be left after the crop to the bucket; others are left out
    background     red, green, blue in 0..1 behind cut-out subjects; black as in the release
    """

    side: int = 512
    multiple: int = 64
    aspect: float = 2.0
    group: int = 16
    reference_side: int = 224
    references: tuple[int, int] = (1, 5)
    subjects: int = 4
    visible: float = 0.25
    background: tuple[float, float, float] = BLACK
    augmentation: Augmentation = field(default_factory=Augmentation)
    dropout: Dropout = field(default_factory=Dropout)

    def __post_init__(self) -> None:
        for name in ("group", "reference_side", "subjects"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}, expected at least 1")
        if len(self.references) != 2 or not 1 <= self.references[0] <= self.references[1]:
            raise ValueError(f"data.references is {self.references}, expected (fewest, most) from 1")
        if not 0 <= self.visible <= 1:
            raise ValueError(f"data.visible is {self.visible}, expected 0..1")
        if len(self.background) != 3 or not all(0 <= v <= 1 for v in self.background):
            raise ValueError(f"data.background is {self.background}, expected red, green and blue in 0..1")
        bucket_sizes(self.side, self.multiple, self.aspect)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """A dict as json.load gives it; lists become tuples. ValueError names unknown fields and values out of range."""
        sections = {"augmentation": Augmentation, "dropout": Dropout}
        return _filled(cls, {k: _filled(sections[k], v) if k in sections and isinstance(v, Mapping) else v for k, v in values.items()})


def _filled(cls: type, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{cls.__name__} has unknown fields {unknown}; known are {sorted(known)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class FileExamples:
    """An `ExampleSource` over records.

    Example `index` follows from (seed, index) and the files alone. A record that turns out to be broken is replaced by the next one of
    its permutation, logged once, and counted in `broken`. References are views of the subject's own crop, or, where other pictures
    show the same identity, of theirs. With `faces` (portrait adapters) a crop without a face is no reference, and a subject without
    references is left out.
    """

    def __init__(self, records: Sequence[Record], seed: int, config: DataConfig | None = None, faces: Faces | None = None) -> None:
        """ValueError when there are no records."""
        if not records:
            raise ValueError("there are no records to make examples from")
        self.records, self.seed, self.config, self.faces = tuple(records), seed, config or DataConfig(), faces
        self.broken: dict[int, str] = {}
        sizes = bucket_sizes(self.config.side, self.config.multiple, self.config.aspect)
        members: dict[int, list[int]] = defaultdict(list)
        self.identities: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, record in enumerate(self.records):
            members[nearest_bucket(record.size, sizes)].append(number)
            for s, segment in enumerate(record.segments):
                if segment.identity is not None:
                    self.identities[segment.identity].append((number, s))
        self.buckets = tuple(sizes[b] for b in sorted(members))
        self.members = tuple(tuple(members[b]) for b in sorted(members))
        self.order = BucketOrder(tuple(map(len, self.members)), seed, self.config.group)

    def example(self, index: int) -> Example:
        """Example `index`, from 0. ValueError when more than half of the records met so far, or all of a bucket, are broken."""
        generator = seeded(self.seed, "example", index)
        bucket, number, pixels, masks = self._picture(index)
        record, dropout = self.records[number], self.config.dropout
        boxes = torch.tensor([s.box for s in record.segments])
        shown, inside, _, kept = fit(pixels, masks, boxes, self.buckets[bucket])
        dropped = float(torch.rand((), generator=generator))
        if dropped < dropout.caption:
            return Example(shown, "", (), index)
        if dropped < dropout.caption + dropout.subjects:
            return Example(shown, record.caption, (), index)
        visible = [s for s in range(len(kept)) if kept[s] > 0 and kept[s] >= self.config.visible]
        chosen = sorted(torch.randperm(len(visible), generator=generator)[: self.config.subjects].tolist())
        subjects = [self._subject(number, visible[i], pixels, masks, inside, generator) for i in chosen]
        return Example(shown, record.caption, tuple(s for s in subjects if s is not None), index)

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        """Examples start..start+size, all of one bucket. ValueError unless `size` divides the group, and `start` is a multiple of it."""
        if size < 1 or self.config.group % size or start % size:
            raise ValueError(
                f"a batch of {size} from example {start} on may span two picture sizes: the batch size must divide group, which is "
                f"{self.config.group}, and the start must be a multiple of the batch size. Set data.group to a multiple of {size}."
            )
        return tuple(self.example(i) for i in range(start, start + size))

    # ------------------------------------------------------------ pictures
    def _picture(self, index: int) -> tuple[int, int, Tensor, Tensor]:
        """Bucket, record, picture [3 H W] in 0..1 and masks [n H W] in 0..1: the first that is whole from the example's place on."""
        bucket, turn, position = self.order.at(index)
        members = self.members[bucket]
        order = permutation(len(members), self.seed, "pictures", bucket, turn)
        for step in range(len(members)):
            number = members[int(order[(position + step) % len(members)])]
            if (loaded := self._load(number)) is not None:
                return bucket, number, *loaded
        height, width = self.buckets[bucket]
        raise ValueError(f"all {len(members)} pictures for the size {width} x {height} are broken; the last: {self.broken[number]}")

    def _load(self, number: int) -> tuple[Tensor, Tensor] | None:
        """Picture [3 H W] and masks [n H W], both in 0..1; None if broken."""
        if number in self.broken:
            return None
        try:
            pixels, masks = self.records[number].load()
        except BrokenRecord as error:
            log.warning("%s is left out: %s", self.records[number].name, error)
            self.broken[number] = str(error)
            check_share([(self.records[n].name, why) for n, why in list(self.broken.items())], len(self.records), "the training data")
            return None
        return pixels.float() / 255, masks.float()

    # ------------------------------------------------------------ subjects
    def _subject(self, number: int, s: int, pixels: Tensor, masks: Tensor, inside: Tensor,
                 generator: torch.Generator) -> ExampleSubject | None:
        fewest, most = self.config.references
        count = int(torch.randint(fewest, most + 1, (), generator=generator))
        segment = self.records[number].segments[s]
        found = self._cutouts(number, s, pixels, masks, count, generator)
        if not found:
            log.info("%s: %r is left out, no face in its pictures", self.records[number].name, segment.word)
            return None
        found = [found[i % len(found)] for i in range(count)]
        looks = [random_look(self.config.augmentation, generator) for _ in found]
        small = [apply_look(resize(cutout, self.config.reference_side), look) for (cutout, _), look in zip(found, looks)]
        shown = torch.stack([on_background(cutout, self.config.background) for cutout in small])
        faces = (torch.stack([f[0] for _, f in found]), torch.stack([f[1] for _, f in found])) if self.faces else None
        return ExampleSubject(segment.span, inside[s], shown, faces)

    def _cutouts(self, number: int, s: int, pixels: Tensor, masks: Tensor, count: int,
                 generator: torch.Generator) -> list[tuple[Tensor, Face | None]]:
        """Up to `count` cutouts [4 L L] with their faces, of other pictures of the identity; if there are none, the picture's own."""
        found: list[tuple[Tensor, Face | None]] = []
        for other, place in self._others(number, s, generator):
            if len(found) == count:
                break
            if (loaded := self._load(other)) is not None:
                found += self._with_face(cut_out(loaded[0], loaded[1][place]))
        return found or self._with_face(cut_out(pixels, masks[s]))

    def _others(self, number: int, s: int, generator: torch.Generator) -> Iterator[tuple[int, int]]:
        """(record, segment) of the same identity in other pictures, in random order."""
        identity = self.records[number].segments[s].identity
        others = [place for place in self.identities.get(identity, ()) if place[0] != number] if identity is not None else []
        return (others[i] for i in torch.randperm(len(others), generator=generator).tolist())

    def _with_face(self, cutout: Tensor) -> list[tuple[Tensor, Face | None]]:
        """One cutout and its face, or nothing where a face is wanted and there is none."""
        if self.faces is None:
            return [(cutout, None)]
        face = self.faces(on_background(cutout, self.config.background))
        return [] if face is None else [(cutout, face)]


class ExampleDataset(Dataset):
    """Whole batches by number, for a DataLoader with workers: item i is source.batch(starts[i], size).

    Use DataLoader(dataset, batch_size=None, num_workers=...); batch_size=None because an item is a batch already.
    """

    def __init__(self, source: FileExamples, starts: Sequence[int], size: int) -> None:
        self.source, self.starts, self.size = source, starts, size

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> tuple[Example, ...]:
        return self.source.batch(self.starts[item], self.size)
