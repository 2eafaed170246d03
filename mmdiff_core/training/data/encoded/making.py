"""Encodes a data set into shards: each process its part, and each record on its own, so the result
does not depend on how many there are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ....processes import Processes
from ...lock import Lock
from ..buckets import Size, bucket_sizes, nearest_bucket
from ..cutouts import resize
from ..images import BrokenRecord
from ..opened import DecodeRecords, OpenedRecord
from ..reading import check_share
from ..records import Record
from .recipe import (
    FILE,
    Manifest,
    Recipe,
    check_recipe,
    digest_of,
    read_manifest,
    write_manifest,
)
from .shards import EncodedShards, ShardWriter, key_of

log = logging.getLogger(__name__)

LOCK_FILE = "encoding.lock"
EVERY = 5.0  # seconds between two lines of progress

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Encoding:
    """How a data set is encoded.

    decode  opens records from their files
    encode  images [B 3 H W] in 0..1 -> latents [B C h w]
    shard   most records of a shard
    """

    recipe: Recipe
    decode: DecodeRecords
    encode: Encode
    shard: int = 128


def encode_records(
    records: Sequence[Record],
    folder: Path,
    encoding: Encoding,
    processes: Processes,
    say: Callable[[str], None],
) -> int:
    """Encode what the folder does not hold yet; how many records this process encoded.

    say  gets a line of progress

    FileError: the folder was encoded otherwise. ValueError: more than half of the records are
    broken, or another process encodes there.
    """
    with Lock(folder / LOCK_FILE, f"the folder {folder}") as lock:
        if processes.main:
            lock.acquire()
            _begin(folder, encoding.recipe)
        processes.wait()
        made = _encode_share(processes.share(records), folder, encoding, say)
        processes.wait()
        if processes.main:
            _finish(folder, records)
        processes.wait()
    return made


def _begin(folder: Path, recipe: Recipe) -> None:
    """Check or write the manifest, and remove what a stopped run left half written."""
    if (folder / FILE).exists():
        check_recipe(read_manifest(folder).recipe, recipe, folder)
    else:
        write_manifest(folder, Manifest(recipe))
    for part in folder.glob("*.part"):
        part.unlink()


def _finish(folder: Path, records: Sequence[Record]) -> None:
    manifest, digest = read_manifest(folder), digest_of(records)
    if digest not in manifest.sets:
        write_manifest(folder, replace(manifest, sets=(*manifest.sets, digest)))


def _encode_share(
    records: Sequence[Record], folder: Path, encoding: Encoding, say: Callable[[str], None]
) -> int:
    """Encode these records; those that are there are read only to know them."""
    there = EncodedShards(folder, encoding.recipe)
    writer = ShardWriter(folder, encoding.recipe, encoding.shard)
    broken: list[tuple[str, str]] = []
    made, began = 0, time.monotonic()
    told = began
    try:
        for number, record in enumerate(records, 1):
            try:
                made += _encode_one(record, there, writer, encoding)
            except BrokenRecord as error:
                log.warning("%s is left out: %s", record.name, error)
                broken.append((record.name, str(error)))
            now = time.monotonic()
            if now - told >= EVERY or number == len(records):
                left = (now - began) / number * (len(records) - number) / 60
                say(f"{number}/{len(records)} · {made} encoded · {left:.0f} min left\n")
                told = now
    finally:
        writer.flush()  # also when somebody stops it
    check_share(broken, max(len(records), 1), "the training data")
    return made


def _encode_one(
    record: Record, there: EncodedShards, writer: ShardWriter, encoding: Encoding
) -> bool:
    """Whether the record had to be encoded. Raises BrokenRecord."""
    key = key_of(record, record.decode_masks())
    if key in there.broken:
        raise BrokenRecord(there.broken[key])
    if key in there or key in writer:
        return False
    try:
        opened = encoding.decode(record)
    except BrokenRecord as error:
        writer.add_broken(key, str(error))
        raise
    writer.add(key, encoded_tensors(opened, record, encoding))
    return True


def encoded_tensors(opened: OpenedRecord, record: Record, encoding: Encoding) -> dict[str, Tensor]:
    """What a shard holds of a record, by the names behind its key."""
    recipe = encoding.recipe
    bucket = bucket_for(record, recipe)
    with torch.no_grad():
        tensors = {"latent": encoding.encode(opened.in_bucket(bucket).pixels[None])[0]}
    for s in range(len(record.segments)):
        if cutout := opened.cutout(s):
            tensors[f"{s}/cutout"] = resize(cutout.pixels, recipe.reference_side)
            if cutout.face is not None:
                tensors[f"{s}/face"], tensors[f"{s}/crop"] = cutout.face
    return tensors


def bucket_for(record: Record, recipe: Recipe) -> Size:
    """The bucket of a record's image."""
    sizes = bucket_sizes(recipe.side, recipe.multiple, recipe.aspect)
    return sizes[nearest_bucket(record.size, sizes)]
