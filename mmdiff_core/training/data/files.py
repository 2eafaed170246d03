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

from ..example import Example, ExampleSubject, ReferenceFace, ReferenceFaces
from .augment import random_variation
from .buckets import bucket_sizes, crop_to_bucket, nearest_bucket
from .config import DataConfig
from .cutouts import cut_out, on_background, reference
from .images import BrokenRecord
from .order import BucketOrder, permutation, seeded
from .reading import check_share
from .records import Decoded, Record, Segment

log = logging.getLogger(__name__)

# a subject's crop [3 L L] in 0..1 -> its face, or None where there is none
FindFace = Callable[[Tensor], "ReferenceFace | None"]


class Drawn(NamedTuple):
    """A record that was drawn for an example, by its number and its bucket's."""

    bucket: int
    number: int
    decoded: Decoded


class Cutout(NamedTuple):
    """A cutout [4 L L] and, where faces are needed, the face in it."""

    pixels: Tensor
    face: ReferenceFace | None


class FileExamples:
    """An `ExampleSource` over records.

    Example `index` follows from (seed, index) and the files alone. A record that turns out to be
    broken is replaced by the next one of its permutation, logged once, and kept in `broken`
    {record number: reason}. References are variations of the subject's own crop, or, where other
    images show the same identity, of theirs. With `find_face` (portrait adapters) a crop without
    a face is no reference, and a subject without references is left out.
    """

    def __init__(
        self,
        records: Sequence[Record],
        seed: int,
        config: DataConfig | None = None,
        find_face: FindFace | None = None,
    ) -> None:
        """ValueError when there are no records."""
        if not records:
            raise ValueError("there are no records to make examples from")
        self.records, self.seed, self.find_face = tuple(records), seed, find_face
        self.config = config or DataConfig()
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
        bucket, number, decoded = self._draw(index)
        caption, dropout = self.records[number].caption, self.config.dropout
        cropped = crop_to_bucket(decoded.pixels, decoded.masks, self.buckets[bucket])
        dropped = float(torch.rand((), generator=generator))
        if dropped < dropout.caption:
            return Example(cropped.pixels, "", (), index)
        if dropped < dropout.caption + dropout.subjects:
            return Example(cropped.pixels, caption, (), index)
        enough = (cropped.kept > 0) & (cropped.kept >= self.config.visible)
        visible = enough.nonzero().flatten().tolist()
        chosen = torch.randperm(len(visible), generator=generator)[: self.config.subjects]
        subjects = []
        for i in sorted(chosen.tolist()):
            mask = cropped.masks[visible[i]]
            subject = self._subject(number, visible[i], decoded, mask, generator)
            subjects += [subject] if subject else []
        return Example(cropped.pixels, caption, tuple(subjects), index)

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
            if decoded := self._decode(number):
                return Drawn(bucket, number, decoded)
        height, width = self.buckets[bucket]
        raise ValueError(
            f"all {len(members)} images for the size {width} x {height} are broken; the last: "
            f"{self.broken[number]}"
        )

    def _decode(self, number: int) -> Decoded | None:
        """The record's image and masks; None if it is broken."""
        if number in self.broken:
            return None
        try:
            return self.records[number].decode()
        except BrokenRecord as error:
            log.warning("%s is left out: %s", self.records[number].name, error)
            self.broken[number] = str(error)
        # list(): other threads add to it
        broken = [(self.records[n].name, reason) for n, reason in list(self.broken.items())]
        check_share(broken, len(self.records), "the training data")
        return None

    # ------------------------------------------------------------ subjects
    def _subject(
        self, number: int, s: int, decoded: Decoded, mask: Tensor, generator: torch.Generator
    ) -> ExampleSubject | None:
        """Segment `s` of record `number` with `mask` [h w]; None when no face is found."""
        fewest, most = self.config.references
        count = int(torch.randint(fewest, most + 1, (), generator=generator))
        segment = self.records[number].segments[s]
        cutouts = self._cutouts(number, s, decoded, count, generator)
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
        faces = ReferenceFaces.stack([c.face for c in cutouts]) if self.find_face else None
        shown = torch.stack(references)
        return ExampleSubject(segment.span, mask, shown, faces, segment.told)

    def _cutouts(
        self, number: int, s: int, decoded: Decoded, count: int, generator: torch.Generator
    ) -> list[Cutout]:
        """Up to `count` cutouts from other images of the identity, or the one of this image."""
        cutouts: list[Cutout] = []
        for other, segment in self._others(number, self.records[number].segments[s], generator):
            if len(cutouts) == count:
                break
            if loaded := self._decode(other):
                cutouts += self._with_face(cut_out(loaded.pixels, loaded.masks[segment]))
        return cutouts or self._with_face(cut_out(decoded.pixels, decoded.masks[s]))

    def _others(
        self, number: int, segment: Segment, generator: torch.Generator
    ) -> Iterator[tuple[int, int]]:
        """(record, segment) of the same identity in other images, in random order."""
        same = () if segment.identity is None else self.identities[segment.identity]
        others = [position for position in same if position[0] != number]
        order = torch.randperm(len(others), generator=generator).tolist()
        return (others[i] for i in order)

    def _with_face(self, cutout: Tensor) -> list[Cutout]:
        """The cutout and its face; nothing where a face is needed and there is none."""
        if self.find_face is None:
            return [Cutout(cutout, None)]
        face = self.find_face(on_background(cutout, self.config.background))
        return [] if face is None else [Cutout(cutout, face)]
