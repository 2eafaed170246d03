"""Training examples from annotated images: number in, example out; nothing else decides.

Shapes   H W image · h w bucket · n segments · R references · L side of a crop
         S side of the image encoder's input
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..example import Example, ExampleSubject, ReferenceFaces
from .augment import random_variation
from .buckets import bucket_sizes, nearest_bucket
from .config import DataConfig
from .cutouts import reference
from .images import BrokenRecord
from .opened import Cutout, DecodeRecords, FindFace, InBucket, OpenedRecord
from .order import BucketOrder, permutation, seeded
from .reading import check_share
from .records import Record, Segment

log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """A record that was drawn for an example, by its number and its bucket's."""

    bucket: int
    number: int
    opened: OpenedRecord


class FileExamples:
    """An `ExampleSource` over records.

    Example `index` follows from (seed, index) and the files alone. A record that turns out to be
    broken is replaced by the next one of its permutation, logged once, and kept in `broken`
    {record number: reason}. References are variations of the subject's own crop, or, where other
    images show the same identity, of theirs. With `find_face` (portrait adapters) a crop without
    a face is no reference, and a subject without references is left out. With `open_record` the
    records are opened otherwise than from their files.
    """

    def __init__(
        self,
        records: Sequence[Record],
        seed: int,
        config: DataConfig | None = None,
        find_face: FindFace | None = None,
        open_record: Callable[[Record], OpenedRecord] | None = None,
    ) -> None:
        """ValueError when there are no records."""
        if not records:
            raise ValueError("there are no records to make examples from")
        self.records, self.seed = tuple(records), seed
        self.config = config or DataConfig()
        self.open_record = open_record or DecodeRecords(find_face, self.config.background)
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
        """Example `index`, from 0.

        ValueError when more than half of the records met so far, or all of a bucket, are broken.
        """
        generator = seeded(self.seed, "example", index)
        bucket, number, opened = self._draw(index)
        caption, dropout = self.records[number].caption, self.config.dropout
        image = opened.in_bucket(self.buckets[bucket])
        dropped = float(torch.rand((), generator=generator))
        if dropped < dropout.caption:
            return Example(image.pixels, "", (), index, image.encoded)
        if dropped < dropout.caption + dropout.subjects:
            return Example(image.pixels, caption, (), index, image.encoded)
        subjects = self._subjects(number, opened, image, generator)
        return Example(image.pixels, caption, subjects, index, image.encoded)

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        """Examples start..start+size, all of one bucket.

        ValueError unless `size` divides the group and `start` is a multiple of it.
        """
        group = self.config.group
        if size < 1 or group % size or start % size:
            raise ValueError(
                f"a batch of {size} from example {start} on may span two image sizes: the batch "
                f"size must divide group, which is {group}, and the start must be a multiple of "
                f"the batch size. Set data.group to a multiple of {size}."
            )
        return tuple(self.example(i) for i in range(start, start + size))

    # ------------------------------------------------------------ images
    def _draw(self, index: int) -> Drawn:
        """The first record that is whole, from the example's position on."""
        bucket, turn, position = self.order.at(index)
        members = self.members[bucket]
        order = permutation(len(members), self.seed, "pictures", bucket, turn)
        for step in range(len(members)):
            number = members[int(order[(position + step) % len(members)])]
            if opened := self._open(number):
                return Drawn(bucket, number, opened)
        height, width = self.buckets[bucket]
        raise ValueError(
            f"all {len(members)} images for the size {width} x {height} are broken; the last: "
            f"{self.broken[number]}"
        )

    def _open(self, number: int) -> OpenedRecord | None:
        """The record; None if it is broken."""
        if number in self.broken:
            return None
        try:
            return self.open_record(self.records[number])
        except BrokenRecord as error:
            log.warning("%s is left out: %s", self.records[number].name, error)
            self.broken[number] = str(error)
        # list(): other threads add to it
        broken = [(self.records[n].name, reason) for n, reason in list(self.broken.items())]
        check_share(broken, len(self.records), "the training data")
        return None

    # ------------------------------------------------------------ subjects
    def _subjects(
        self, number: int, opened: OpenedRecord, image: InBucket, generator: torch.Generator
    ) -> tuple[ExampleSubject, ...]:
        """The subjects that the bucket's crop left, or a random choice of them."""
        enough = (image.kept > 0) & (image.kept >= self.config.visible)
        visible = enough.nonzero().flatten().tolist()
        chosen = torch.randperm(len(visible), generator=generator)[: self.config.subjects]
        subjects = []
        for i in sorted(chosen.tolist()):
            mask = image.masks[visible[i]]
            subject = self._subject(number, visible[i], opened, mask, generator)
            subjects += [subject] if subject else []
        return tuple(subjects)

    def _subject(
        self, number: int, s: int, opened: OpenedRecord, mask: Tensor, generator: torch.Generator
    ) -> ExampleSubject | None:
        """Segment `s` of record `number` with `mask` [h w]; None when no face is found."""
        fewest, most = self.config.references
        count = int(torch.randint(fewest, most + 1, (), generator=generator))
        segment = self.records[number].segments[s]
        cutouts = self._cutouts(number, s, opened, count, generator)
        if not cutouts:
            name = self.records[number].name
            log.info("%s: %r is left out, no face in its images", name, segment.word)
            return None
        cutouts = [cutouts[i % len(cutouts)] for i in range(count)]
        augmentation = self.config.augmentation
        variations = [random_variation(augmentation, generator) for _ in cutouts]
        references = []
        for cutout, variation in zip(cutouts, variations):
            references.append(
                reference(
                    cutout.pixels, self.config.reference_side, variation, self.config.background
                )
            )
        faces = [cutout.face for cutout in cutouts if cutout.face is not None]
        shown = torch.stack(references)
        stacked = ReferenceFaces.stack(faces) if faces else None
        return ExampleSubject(segment.span, mask, shown, stacked, segment.told)

    def _cutouts(
        self, number: int, s: int, opened: OpenedRecord, count: int, generator: torch.Generator
    ) -> list[Cutout]:
        """Up to `count` cutouts from other images of the identity, or the one of this image."""
        cutouts: list[Cutout] = []
        for other, segment in self._others(number, self.records[number].segments[s], generator):
            if len(cutouts) == count:
                break
            if found := self._open(other):
                cutouts += _there(found.cutout(segment))
        return cutouts or _there(opened.cutout(s))

    def _others(
        self, number: int, segment: Segment, generator: torch.Generator
    ) -> Iterator[tuple[int, int]]:
        """(record, segment) of the same identity in other images, in random order."""
        same = () if segment.identity is None else self.identities[segment.identity]
        others = [position for position in same if position[0] != number]
        order = torch.randperm(len(others), generator=generator).tolist()
        return (others[i] for i in order)


def _there(cutout: Cutout | None) -> list[Cutout]:
    """The cutout, or nothing where a face is needed and there is none."""
    return [] if cutout is None else [cutout]
