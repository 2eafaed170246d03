"""Embeddings kept on the disk by the hash of what was embedded, so that a run can be stopped at any
image, and several processes share one folder.

Every image is embedded by itself: what it gets does not depend on its neighbours in a batch, so one
process and many give the same numbers.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .extractors import LoadedExtractor, file_hash

MOST_PIXELS = 1 << 26


@dataclass(frozen=True)
class Job:
    """One embedding that is needed: of an image file, of the faces in it, or of a text."""

    extractor: str
    kind: str  # "image", "faces" or "text"
    what: Path | str


def open_rgb(path: Path) -> Image.Image:
    """An image file as RGB. ValueError for what is no image, or has more than 67 million pixels."""
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{path} has {opened.width} x {opened.height} pixels")
            return opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


class Store:
    """Embeddings by extractor and content, made where they are not there yet."""

    def __init__(self, folder: Path, extractors: Sequence[LoadedExtractor]) -> None:
        self.folder = folder
        self.extractors = {each.name: each for each in extractors}
        self._hashes: dict[Path, str] = {}
        self._kept: dict[Job, np.ndarray] = {}

    def image(self, extractor: str, path: Path) -> np.ndarray:
        """Embedding [d] of a whole image."""
        return self.get(Job(extractor, "image", path))

    def faces(self, extractor: str, path: Path) -> np.ndarray:
        """Embeddings [F d] of the faces in an image, the largest first."""
        return self.get(Job(extractor, "faces", path))

    def text(self, extractor: str, text: str) -> np.ndarray:
        """Embedding [d] of a text."""
        return self.get(Job(extractor, "text", text))

    def get(self, job: Job) -> np.ndarray:
        """An embedding, from memory, from the disk, or made now."""
        if job not in self._kept:
            place = self.place(job)
            found = _read(place)
            if found is None:
                found = self._make(job)
                _write(place, found)
            self._kept[job] = found
        return self._kept[job]

    def has(self, job: Job) -> bool:
        """Whether it is on the disk."""
        return _read(self.place(job)) is not None

    def place(self, job: Job) -> Path:
        """Its file. The name says the model's files, and the content."""
        model = self.extractors[job.extractor].digest[:16]
        if isinstance(job.what, Path):
            content = self.hash_of(job.what)
        else:
            content = hashlib.sha256(job.what.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{job.kind}-{content[:40]}.npy"
        return self.folder / f"{job.extractor}-{model}" / name

    def hash_of(self, path: Path) -> str:
        """SHA-256 of a file, read once."""
        if path not in self._hashes:
            self._hashes[path] = file_hash(path)
        return self._hashes[path]

    def _make(self, job: Job) -> np.ndarray:
        model = self.extractors[job.extractor].model
        what = open_rgb(job.what) if isinstance(job.what, Path) else job.what
        made = np.asarray(getattr(model, job.kind)(what), np.float32)
        if not np.isfinite(made).all():
            raise ValueError(f"{job.extractor} answers {job.what} with values that are not finite")
        return made


def _read(place: Path) -> np.ndarray | None:
    """What is in the file; None where there is none, or it broke off."""
    try:
        return np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _write(place: Path, values: np.ndarray) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.stem}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    temporary.replace(place)


def embed_all(
    jobs: Iterable[Job], store: Store, rank: int, world: int, say: Callable[[str], None]
) -> int:
    """Make this process's share of what is not there yet; how many were made.

    rank, world  this process's number and how many there are; the shares do not overlap
    say          gets a line of progress with the time that is left, at most every 5 seconds
    """
    own = [job for job in list(dict.fromkeys(jobs))[rank::world] if not store.has(job)]
    began = told = time.monotonic()
    for number, job in enumerate(own, 1):
        store.get(job)
        now = time.monotonic()
        if now - told > 5 or number == len(own):
            left = (now - began) / number * (len(own) - number)
            say(f"{number} of {len(own)} embeddings, {left:.0f} s left")
            told = now
    return len(own)
