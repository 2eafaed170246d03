"""Shards: .safetensors files with what was encoded of some records, by the records' keys.

A record's key is the hash of its image's bytes and of its masks, so a record that changed has
another one. Tensors of the record KEY, all float32:

    KEY/latent     [C h w], as `Bridge.latents` gives it
    KEY/S/cutout   [4 S S] in 0..1, the cutout of segment S (from 0) at the references' size
    KEY/S/face     [512], and KEY/S/crop [3 F F] in 0..1: the face in it, where faces are needed
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ....checkpoints.errors import FileError
from ....checkpoints.tensor_file import (
    Entry,
    TensorFile,
    as_tensor,
    open_tensor_file,
    write_tensor_file,
)
from ....untrusted import STRICT, parse, plain
from ..records import Record
from .recipe import COMMAND, Hash, Recipe

PATTERN, FACTS = "shard-*.safetensors", "encoded"
MOST_SIDE = 4096  # of a latent, or of a face's crop
MOST_REASON = 500  # characters
FACE = 512
CHUNK = 1 << 20
NAME = re.compile(r"[0-9a-f]{32}/(latent|[0-9]{1,2}/(cutout|face|crop))")

Key = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Sum = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
TensorName = Annotated[str, Field(max_length=50)]
Reason = Annotated[str, Field(max_length=MOST_REASON)]


def key_of(record: Record, masks: Tensor) -> str:
    """The key of a record with its masks [n H W], 0 or 1. BrokenRecord for an unreadable image."""
    digest = hashlib.blake2b(digest_size=16)
    with record.image.open() as file:
        while data := file.read(CHUNK):
            digest.update(data)
    digest.update(json.dumps(list(masks.shape)).encode())
    digest.update(np.packbits(masks.numpy().astype(bool)).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Facts:
    """What a shard says of itself.

    recipe  the digest of its recipe
    sums    hashes of its tensors' bytes
    broken  reasons why records cannot be used, by key
    """

    __pydantic_config__ = STRICT

    recipe: Hash
    sums: Annotated[dict[TensorName, Sum], Field(max_length=50_000)]
    broken: Annotated[dict[Key, Reason], Field(max_length=50_000)]


@dataclass(frozen=True)
class Shard:
    """A shard whose table is checked."""

    file: TensorFile
    facts: _Facts
    names: Mapping[str, tuple[str, ...]]

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of a record, by their names behind the key. FileError for damaged ones."""
        found = {}
        with self.file.path.open("rb") as file:
            for name in self.names[key]:
                entry = self.file.table[name]
                data = bytearray(entry.size)
                file.seek(self.file.begin + entry.start)
                if file.readinto(data) != entry.size or _sum(data) != self.facts.sums[name]:
                    raise FileError(f"{self.file.name} is damaged: delete it, and run {COMMAND}")
                found[name.partition("/")[2]] = as_tensor(data, entry.dtype, entry.shape)
        for name, tensor in found.items():
            _check_values(name, tensor, self.file.name)
        return found


def _check_values(name: str, tensor: Tensor, shard: str) -> None:
    """FileError for numbers that no encoding gives."""
    unit = name.endswith(("cutout", "crop"))
    low, high = (0.0, 1.0) if unit else (-1e6, 1e6)
    least, most = tensor.aminmax()
    if not (low <= float(least) and float(most) <= high):  # not finite is neither
        raise FileError(
            f"{shard}: a {name.rpartition('/')[2]} in it has values outside of {low:g} to "
            f"{high:g}: delete the file, and run {COMMAND}"
        )


@lru_cache(maxsize=256)
def _kept_shard(path: Path, recipe: Recipe, stamp: int) -> Shard:
    """`open_shard`, kept for the file as it was at `stamp`."""
    return open_shard(path, recipe)


def open_shard(path: Path, recipe: Recipe) -> Shard:
    """A shard, its table and facts checked; no tensor is read. FileError."""
    file = open_tensor_file(path)
    try:
        facts = parse(_Facts, file.header.get(FACTS, "null"), "what it says of itself")
    except ValueError as error:
        raise FileError(f"{file.name}: {error}") from error
    if facts.recipe != recipe.digest:
        raise FileError(
            f"{file.name} belongs to another folder: it was encoded otherwise. Delete it, and run "
            f"{COMMAND}"
        )
    if set(facts.sums) != set(file.table):
        raise FileError(f"{file.name} is damaged: its tensors are not those that it lists")
    names: dict[str, tuple[str, ...]] = {}
    for name, entry in file.table.items():
        _check_entry(name, entry, recipe, file.name)
        key = name.partition("/")[0]
        names[key] = (*names.get(key, ()), name)
    return Shard(file, facts, names)


def _check_entry(name: str, entry: Entry, recipe: Recipe, shard: str) -> None:
    """FileError for a tensor that no record has."""
    if not NAME.fullmatch(name) or entry.dtype != torch.float32:
        raise FileError(f"{shard} has the tensor {plain(name)}, which is none of a record")
    kind, shape = name.rpartition("/")[2], entry.shape
    side = shape[-1] if shape else 0
    fits = {
        "latent": len(shape) == 3 and shape[0] == recipe.encoder.channels,
        "cutout": shape == (4, recipe.reference_side, recipe.reference_side),
        "face": shape == (FACE,),
        "crop": shape == (3, side, side),
    }
    if not fits[kind] or not all(1 <= n <= MOST_SIDE for n in shape):
        raise FileError(f"{shard}: the tensor {plain(name)} has the shape {shape}")


class EncodedShards:
    """All shards of a folder, by the keys of their records."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        """FileError where a shard cannot be used."""
        self.recipe, self._paths = recipe, sorted(folder.glob(PATTERN))
        self._stamps = [path.stat().st_mtime_ns for path in self._paths]
        self._places: dict[str, int] = {}
        self.broken: dict[str, str] = {}
        for number, path in enumerate(self._paths):
            shard = open_shard(path, recipe)
            self.broken |= shard.facts.broken
            for key in shard.names:
                self._places.setdefault(key, number)

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self.broken

    def read(self, key: str) -> dict[str, Tensor] | None:
        """A record's tensors; None where it is not encoded. FileError for damaged ones."""
        if key not in self._places:
            return None
        place = self._places[key]
        return _kept_shard(self._paths[place], self.recipe, self._stamps[place]).read(key)


class ShardWriter:
    """Writes shards of at most `most` records each; one appears when it is whole."""

    def __init__(self, folder: Path, recipe: Recipe, most: int = 128) -> None:
        self.folder, self.recipe, self.most = folder, recipe, most
        self._tensors: dict[str, Tensor] = {}
        self._keys: set[str] = set()
        self._broken: dict[str, str] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """A record's tensors, by their names behind the key."""
        for name, tensor in tensors.items():
            self._tensors[f"{key}/{name}"] = tensor.detach().float().cpu().contiguous()
        self._added(key)

    def add_broken(self, key: str, reason: str) -> None:
        """A record that cannot be used, and why."""
        self._broken[key] = plain(reason, MOST_REASON)
        self._added(key)

    def _added(self, key: str) -> None:
        self._keys.add(key)
        if len(self._keys) >= self.most:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last shard."""
        if not self._keys:
            return
        sums = {name: _sum(tensor.numpy().tobytes()) for name, tensor in self._tensors.items()}
        facts = _Facts(self.recipe.digest, sums, self._broken)
        name = hashlib.sha256(" ".join(sorted(self._keys)).encode()).hexdigest()[:16]
        path = self.folder / f"shard-{name}.safetensors"
        write_tensor_file(path, self._tensors, {FACTS: json.dumps(asdict(facts))})
        self._tensors, self._keys, self._broken = {}, set(), {}


def _sum(data: bytes | bytearray) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
