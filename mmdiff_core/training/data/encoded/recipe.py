"""What encoded records depend on, beside the records: told in manifest.json, compared by each run.

Random flips are for references alone; the image itself is never flipped, so it has one latent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ....checkpoints.errors import FileError
from ....checkpoints.tensor_file import check_regular
from ....untrusted import STRICT, parse, quoted
from ..config import DataConfig
from ..records import Record

FILE, MOST_MANIFEST = "manifest.json", 1 << 20  # bytes
COMMAND = "python -m mmdiff_core encode RUN.json"
CROP = "the most of the worst kept subject"  # the rule of `buckets.best_crop`

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=16384)]
Channel = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Encoder:
    """What turns images into latents.

    vae        SHA-256 of the VAE's weights and of the latents' scale
    dtype      that it computes in
    channels   of a latent
    downscale  pixels to a latent's position, on a side
    """

    __pydantic_config__ = STRICT

    vae: Hash
    dtype: Annotated[str, Field(min_length=1, max_length=20)]
    channels: Annotated[int, Field(ge=1, le=256)]
    downscale: Annotated[int, Field(ge=1, le=256)]


@dataclass(frozen=True)
class Recipe:
    """All that encoded records depend on, beside their images and masks.

    side, multiple, aspect, reference_side   as in `DataConfig`
    crop, flipped                            how an image becomes one of its bucket
    faces, background                        SHA-256 of the face models, and what is behind the
                                             crops they search; None without faces
    """

    __pydantic_config__ = STRICT

    encoder: Encoder
    side: Side
    multiple: Side
    aspect: Annotated[float, Field(ge=1, le=100)]
    reference_side: Side
    crop: Annotated[str, Field(max_length=100)] = CROP
    flipped: bool = False
    faces: Hash | None = None
    background: tuple[Channel, Channel, Channel] | None = None

    @classmethod
    def of(cls, config: DataConfig, encoder: Encoder, faces: str | None) -> Recipe:
        """What a run's own settings ask for; `faces` is the hash of its face models."""
        sides = (config.side, config.multiple, float(config.aspect), config.reference_side)
        background = tuple(map(float, config.background)) if faces else None
        return cls(encoder, *sides, faces=faces, background=background)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """A folder's manifest.json.

    sets  digests of the lists of records that are encoded as a whole; see `digest_of`
    """

    __pydantic_config__ = STRICT

    recipe: Recipe
    sets: Annotated[tuple[Hash, ...], Field(max_length=10_000)] = ()
    format: Literal["mmdiff-encoded"] = "mmdiff-encoded"
    version: Literal[1] = 1


def digest_of(records: Sequence[Record]) -> str:
    """SHA-256 of a list of records: their names, sizes and segments' words, in order."""
    digest = hashlib.sha256()
    for record in records:
        told = [record.name, record.size, [segment.word for segment in record.segments]]
        digest.update(json.dumps(told).encode())
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest. FileError where there is none, or it is of another form."""
    if not (folder / FILE).is_file():
        raise FileError(f"{folder} holds no encoded records; make them first: {COMMAND}")
    if check_regular(folder / FILE) > MOST_MANIFEST:
        raise FileError(f"{folder / FILE} has more than {MOST_MANIFEST} bytes")
    try:
        return parse(Manifest, (folder / FILE).read_bytes(), FILE)
    except ValueError as error:
        raise FileError(f"{folder}: {error}. Delete the folder, and encode again") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it, in one step."""
    part = folder / f"{FILE}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(manifest), indent=1))
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / FILE)


def check_recipe(saved: Recipe, now: Recipe, folder: Path) -> None:
    """FileError names everything in which the folder's recipe differs from this run's."""
    pairs = [(field.name, saved, now) for field in fields(Recipe) if field.name != "encoder"]
    pairs += [(field.name, saved.encoder, now.encoder) for field in fields(Encoder)]
    changed = []
    for name, one, two in pairs:
        before, after = getattr(one, name), getattr(two, name)
        if before != after:
            changed.append(f"{name} was {_shown(before)} and is now {_shown(after)}")
    if changed:
        raise FileError(
            f"{folder} was encoded otherwise than this run would: {'; '.join(changed)}. Set the "
            f"old values, or name a new folder in data.encoded and make it: {COMMAND}"
        )


def _shown(value: object) -> str:
    """A value for a message; of a hash its first digits, as enough to tell two apart."""
    is_hash = isinstance(value, str) and len(value) == 64
    return f"{value[:12]}..." if is_hash else quoted(value)
