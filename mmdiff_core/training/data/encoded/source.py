"""Encoded records as what examples are made of: the same as from their files, without decoding.

Shapes   H W image · h w bucket · n segments
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ....checkpoints.errors import FileError
from ....untrusted import plain
from ...example import EncodedImage, ReferenceFace
from ..buckets import Size, best_crop, crop_masks
from ..images import BrokenRecord
from ..opened import Cutout, InBucket
from ..records import Record
from .recipe import COMMAND, Recipe, check_recipe, digest_of, read_manifest
from .shards import EncodedShards, key_of


class EncodedRecords:
    """Opens records of a data set that was encoded into a folder."""

    def __init__(self, folder: Path, recipe: Recipe, records: Sequence[Record]) -> None:
        """FileError: the folder was encoded otherwise, not for all these records, or is damaged."""
        manifest = read_manifest(folder)
        check_recipe(manifest.recipe, recipe, folder)
        if digest_of(records) not in manifest.sets:
            raise FileError(
                f"{folder} does not hold all {len(records)} records of this run: it was stopped, "
                f"or the records have changed. Go on with it: {COMMAND}"
            )
        self.folder, self.shards = folder, EncodedShards(folder, recipe)

    def __call__(self, record: Record) -> EncodedRecord:
        """Raises BrokenRecord as decoding does, and FileError for a record that has changed since
        it was encoded."""
        masks = record.decode_masks()
        key = key_of(record, masks)
        if (tensors := self.shards.read(key)) is None:
            if key in self.shards.broken:
                raise BrokenRecord(plain(self.shards.broken[key], 500))
            raise FileError(
                f"{record.name} is not in {self.folder}: its image or masks have changed since "
                f"they were encoded, or a shard is gone. Encode it again: {COMMAND}"
            )
        return EncodedRecord(masks, tensors, self.shards.recipe, record.name)


@dataclass(frozen=True, eq=False)
class EncodedRecord:
    """An `OpenedRecord`.

    masks    [n H W], 0 or 1
    tensors  of the shard, by their names behind the key
    """

    masks: Tensor
    tensors: Mapping[str, Tensor]
    recipe: Recipe
    name: str

    def in_bucket(self, bucket: Size) -> InBucket:
        crop = best_crop(self.masks, tuple(self.masks.shape[-2:]), bucket)
        masks, kept = crop_masks(self.masks, crop, bucket)
        encoder = self.recipe.encoder
        expected = (encoder.channels, *(side // encoder.downscale for side in bucket))
        latent = self._tensor("latent")
        if tuple(latent.shape) != expected:
            raise FileError(
                f"the latent of {self.name} is {tuple(latent.shape)}, expected {expected} for the "
                f"size of its image: delete the shards, and run {COMMAND}"
            )
        return InBucket(masks, kept, encoded=EncodedImage(latent, bucket))

    def cutout(self, s: int) -> Cutout | None:
        if self.recipe.faces is None:
            return Cutout(self._tensor(f"{s}/cutout"), None)
        if f"{s}/face" not in self.tensors:
            return None
        face = ReferenceFace(self._tensor(f"{s}/face"), self._tensor(f"{s}/crop"))
        return Cutout(self._tensor(f"{s}/cutout"), face)

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise FileError(
                f"the shard of {self.name} lacks its {name}: delete the shards, and run {COMMAND}"
            )
        return self.tensors[name]
