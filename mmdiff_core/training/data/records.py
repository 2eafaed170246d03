"""Annotated pictures on disk. A record knows where its picture and masks lie; decoding waits until `load`.

Two layouts; the segments of both are those of the published annotation demo: id, word, start, end, box.
    JSON lines   {"image": PATH, "caption": TEXT, "segments": [{"id": 1, "word": "dog", "start": 2, "end": 5, "box": [x0, y0, x1, y1],
                 "mask": {"size": [H, W], "counts": COCO run lengths} or PATH of a png, "identity": optional NAME}]}
    shards       WebDataset tar files, or a folder of the same files (what the demo writes): KEY.jpg, .jpeg, .png or .webp;
                 KEY.json, as a line above without the image; masks in it, in KEY.<id>.png, or in KEY.npy
Paths are relative to the JSON-lines file. A segment without `id` has its number, counted from 1. KEY.npy (JSON lines: "segmap":
PATH) holds at every pixel the id of the segment there, 0 = background. Boxes are in pixels, x1 and y1 just outside.

Shapes   H W picture · n segments
"""
from __future__ import annotations

import io
import json
import logging
import os
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import ContainerIO, Image, ImageOps
from torch import Tensor

log = logging.getLogger(__name__)

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SLACK = 0.05            # a detector's box may reach this share of the picture's side beyond the picture; it is clipped
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)        # EXIF: the picture lies on its side
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)    # what PIL and numpy raise


class BrokenRecord(ValueError):
    """A record that cannot be used; the message says what was found and what was expected."""


# ---------------------------------------------------------------- bytes, pictures and masks

@dataclass(frozen=True, slots=True)
class Stored:
    """Where bytes lie: `size` bytes of the file at `path` from `offset` on; None = to its end."""

    path: str
    offset: int = 0
    size: int | None = None

    @contextmanager
    def open(self) -> Iterator[io.IOBase]:
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - self.offset if self.size is None else self.size
            yield ContainerIO.ContainerIO(file, self.offset, size)

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()


def read_picture(stored: Stored) -> Image.Image:
    """RGB, upright as EXIF says. Raises BrokenRecord."""
    try:
        with stored.open() as file, Image.open(file) as image:
            return (image if image.format == "PNG" else ImageOps.exif_transpose(image)).convert("RGB")
    except UNREADABLE as error:
        raise BrokenRecord(f"its picture cannot be read: {error}") from error


def picture_size(stored: Stored) -> tuple[int, int]:
    """(height, width) from the header alone, upright. Raises BrokenRecord."""
    try:
        with stored.open() as file, Image.open(file) as image:
            sideways = image.format != "PNG" and image.getexif().get(ORIENTATION) in SIDEWAYS
            return image.size if sideways else image.size[::-1]
    except UNREADABLE as error:
        raise BrokenRecord(f"its picture cannot be read: {error}") from error


def pixels_of(image: Image.Image) -> Tensor:
    """RGB picture -> uint8 [3 H W]."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """bool [H W] -> COCO run lengths {"size": [H, W], "counts": [...]}: down the columns, the first run outside the mask."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat.size and flat[0] else runs}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """COCO run lengths, `counts` a list or COCO's compressed text -> bool [H W]. ValueError if they do not fill the picture."""
    height, width = rle["size"]
    counts = _runs(rle["counts"]) if isinstance(rle["counts"], str) else rle["counts"]
    counts = np.asarray(counts, dtype=np.int64)
    if counts.size and counts.min() < 0 or counts.sum() != height * width:
        raise ValueError(f"run lengths sum to {counts.sum()}, expected {height} x {width} = {height * width}")
    return np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(width, height).T


def _runs(text: str) -> list[int]:
    """COCO's compressed text: 5 bits a character, low ones first; from the fourth on a run is given as change to the one two before."""
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode("ascii"):
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs


class Mask(Protocol):
    def decode(self) -> np.ndarray:
        """bool [H W]. Any exception of UNREADABLE, or KeyError, TypeError, IndexError, means that it is broken."""


@dataclass(frozen=True, slots=True)
class RunLengthMask:
    """Run lengths of the `number`-th segment in a record's JSON; only their place is kept in memory."""

    record: Stored
    number: int

    def decode(self) -> np.ndarray:
        return decode_rle(json.loads(self.record.read())["segments"][self.number]["mask"])


@dataclass(frozen=True, slots=True)
class PngMask:
    """White (or above half of its brightest value) where the subject is."""

    picture: Stored

    def decode(self) -> np.ndarray:
        with self.picture.open() as file, Image.open(file) as image:
            values = np.array(image.convert("L"))
        return (values > 0) & (values >= values.max() / 2)


@dataclass(frozen=True, slots=True)
class MapMask:
    """Where a map [H W] of segment ids, a .npy file, holds this id."""

    map: Stored
    id: int

    def decode(self) -> np.ndarray:
        return np.load(io.BytesIO(self.map.read()), allow_pickle=False) == self.id


# ---------------------------------------------------------------- records

@dataclass(frozen=True, slots=True)
class Segment:
    """One subject of a picture.

    span      first and one-past-last character of `word` in the caption
    box       x0, y0, x1, y1 in pixels, within the picture
    identity  the same individual has the same name in all pictures; None = unknown
    """

    word: str
    span: tuple[int, int]
    box: tuple[float, float, float, float]
    mask: Mask
    identity: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A picture of `size` (height, width) with its caption and segments, in the order of the caption."""

    name: str
    image: Stored
    size: tuple[int, int]
    caption: str
    segments: tuple[Segment, ...]

    def load(self) -> tuple[Tensor, Tensor]:
        """Picture uint8 [3 H W] and masks bool [n H W]. Raises BrokenRecord for what only decoding can tell."""
        pixels = pixels_of(read_picture(self.image))
        if pixels.shape[1:] != self.size:
            raise BrokenRecord(f"its picture is {tuple(pixels.shape[1:])} now, and was {self.size} when the data was opened")
        return pixels, torch.stack([torch.from_numpy(self._mask(s)) for s in self.segments])

    def _mask(self, segment: Segment) -> np.ndarray:
        try:
            mask = np.ascontiguousarray(segment.mask.decode())
        except (*UNREADABLE, KeyError, TypeError, IndexError) as error:
            raise BrokenRecord(f"the mask of {segment.word!r} cannot be read: {error}") from error
        if mask.shape != self.size:
            raise BrokenRecord(f"the mask of {segment.word!r} is {mask.shape}, expected the picture's {self.size}")
        if not mask.any():
            raise BrokenRecord(f"the mask of {segment.word!r} is empty")
        return mask


@dataclass(frozen=True, slots=True)
class Records:
    """What was read: `broken` holds (name, reason) of every record that was left out."""

    records: tuple[Record, ...]
    broken: tuple[tuple[str, str], ...] = ()


def read_records(path: Path) -> Records:
    """A .jsonl file, a .tar shard, a folder of shards, or a folder in the shards' layout. Broken records are logged, left out and
    counted. ValueError: nothing there, or more than half of it is broken."""
    path = Path(path)
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.is_dir():
        return read_shards(sorted(path.glob("*.tar")) or [path])
    if path.suffix == ".tar":
        return read_shards([path])
    raise ValueError(f"{path} is neither a .jsonl file, a .tar shard nor a folder (a compressed shard must be unpacked to .tar first)")


def read_jsonl(path: Path) -> Records:
    """Records of a JSON-lines file, one a line; see `read_records`."""
    return _collect(_lines(Path(path)), str(path))


def read_shards(paths: Sequence[Path]) -> Records:
    """Records of tar shards or of folders in their layout; the index of members is built once. See `read_records`."""
    return _collect((item for path in paths for item in _members(Path(path))), ", ".join(map(str, paths[:3])))


Made = Iterable[tuple[str, Callable[[], Record]]]


def _collect(made: Made, source: str) -> Records:
    good: list[Record] = []
    broken: list[tuple[str, str]] = []
    for name, make in made:
        try:
            good.append(make())
        except BrokenRecord as error:
            log.warning("%s is left out: %s", name, error)
            broken.append((name, str(error)))
    check_share(broken, len(good) + len(broken), source)
    return Records(tuple(good), tuple(broken))


def check_share(broken: Sequence[tuple[str, str]], total: int, source: str) -> None:
    """ValueError when there are no records, or more than half of them are broken: then it is the data, not a stray file."""
    if not total:
        raise ValueError(f"{source} holds no records; expected a line, or a KEY.json beside a KEY.jpg, for each picture")
    if 2 * len(broken) > total:
        shown = "; ".join(f"{name}: {why}" for name, why in broken[:3])
        raise ValueError(f"{len(broken)} of {total} records in {source} are broken, more than half. The first ones: {shown}")


def _lines(path: Path) -> Made:
    base, offset = path.parent, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            stored = Stored(str(path), offset, len(line))
            offset += len(line)
            if line.strip():
                yield f"{path.name}:{number}", lambda n=f"{path.name}:{number}", x=line, s=stored: _from_line(n, x, s, base)


def _from_line(name: str, line: bytes, stored: Stored, base: Path) -> Record:
    facts = _json(line)
    image = Stored(str(base / _field(facts, "image", str)))

    def mask(number: int, segment: Mapping) -> Mask:
        found = segment.get("mask")
        if isinstance(found, str):
            return PngMask(Stored(str(base / found)))
        if found is None and isinstance(facts.get("segmap"), str):
            return MapMask(Stored(str(base / facts["segmap"])), segment.get("id", number + 1))
        return _run_lengths(found, stored, number)

    return _record(name, facts, image, mask)


def _members(path: Path) -> Made:
    """Members by key: up to the first dot of the name, as WebDataset has it."""
    groups: dict[str, dict[str, Stored]] = {}
    for name, stored in _tar_index(path) if path.is_file() else _folder_index(path):
        folder, _, base = name.rpartition("/")
        key, _, ending = base.partition(".")
        groups.setdefault(f"{folder}/{key}" if folder else key, {})[ending.lower()] = stored
    for key, files in groups.items():
        if any(ending.split(".")[-1] == "json" for ending in files):
            yield f"{path.name}:{key}", lambda k=key, f=files: _from_members(f"{path.name}:{k}", f)


def _tar_index(path: Path) -> list[tuple[str, Stored]]:
    try:
        with closing(tarfile.open(path, "r:")) as tar:      # "r:": compressed files have no places to seek to
            return [(m.name, Stored(str(path), m.offset_data, m.size)) for m in tar if m.isfile()]
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a whole uncompressed tar file: {error}. Unpack it, or copy it again.") from error


def _folder_index(path: Path) -> list[tuple[str, Stored]]:
    return [(p.relative_to(path).as_posix(), Stored(str(p))) for p in sorted(path.rglob("*")) if p.is_file()]


def _from_members(name: str, files: Mapping[str, Stored]) -> Record:
    image = next((files[end[1:]] for end in PICTURES if end[1:] in files), None)
    if image is None or "json" not in files:
        raise BrokenRecord(f"has {sorted(files)}, expected json and one of {', '.join(PICTURES)}; there must be no other dot in the name")
    facts = _json(files["json"].read())

    def mask(number: int, segment: Mapping) -> Mask:
        own = segment.get("id", number + 1)
        if f"{own}.png" in files:
            return PngMask(files[f"{own}.png"])
        if segment.get("mask") is None and "npy" in files:
            return MapMask(files["npy"], own)
        return _run_lengths(segment.get("mask"), files["json"], number)

    return _record(name, facts, image, mask)


# ---------------------------------------------------------------- from JSON, with everything checked that needs no decoding

def _record(name: str, facts: Mapping, image: Stored, mask: Callable[[int, Mapping], Mask]) -> Record:
    size, caption = picture_size(image), _field(facts, "caption", str)
    given = _field(facts, "segments", list)
    segments = sorted((_segment(s, caption, size, mask(i, s)) for i, s in enumerate(_mappings(given))), key=lambda s: s.span)
    if not segments:
        raise BrokenRecord("has no segments; expected at least one subject")
    for one, two in zip(segments, segments[1:]):
        if two.span[0] < one.span[1]:
            raise BrokenRecord(f"two segments share characters of the caption: {one.word!r} at {one.span} and {two.word!r} at {two.span}")
    return Record(name, image, size, caption, tuple(segments))


def _segment(facts: Mapping, caption: str, size: tuple[int, int], mask: Mask) -> Segment:
    word, start, end = _field(facts, "word", str), _field(facts, "start", int), _field(facts, "end", int)
    if not word or start < 0 or caption[start:end] != word:
        raise BrokenRecord(f"characters {start} to {end} of the caption are {caption[max(start, 0):end]!r}, but the word is {word!r}")
    identity = facts.get("identity")
    return Segment(word, (start, end), _box(_field(facts, "box", list), size), mask, None if identity is None else str(identity))


def _box(values: list, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box within the picture. BrokenRecord when it has no area, or reaches out by more than SLACK of a side."""
    if len(values) != 4 or not all(isinstance(v, (int, float)) for v in values):
        raise BrokenRecord(f"a box is {values!r}, expected [x0, y0, x1, y1] in pixels")
    ends = (size[1], size[0]) * 2
    x0, y0, x1, y1 = (min(max(v, 0), end) for v, end in zip(values, ends))
    if any(abs(v - c) > SLACK * end for v, c, end in zip(values, (x0, y0, x1, y1), ends)) or x0 >= x1 or y0 >= y1:
        raise BrokenRecord(f"the box {values} is empty or outside of the picture of {size[1]} x {size[0]} pixels")
    return float(x0), float(y0), float(x1), float(y1)


def _run_lengths(found: Any, record: Stored, number: int) -> RunLengthMask:
    if not isinstance(found, Mapping) or not {"size", "counts"} <= set(found):
        raise BrokenRecord(f"segment {number + 1} has no mask: found {str(found)[:40]!r}, expected run lengths with size and counts, "
                           "a .png, or a .npy map of segment ids")
    return RunLengthMask(record, number)


def _json(text: bytes) -> Mapping:
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise BrokenRecord(f"is not JSON: {error}") from error
    if not isinstance(facts, Mapping):
        raise BrokenRecord(f"is JSON of a {type(facts).__name__}, expected an object with caption and segments")
    return facts


def _mappings(given: list) -> list[Mapping]:
    if wrong := [s for s in given if not isinstance(s, Mapping)]:
        raise BrokenRecord(f"a segment is {str(wrong[0])[:40]!r}, expected an object with word, start, end and box")
    return given


def _field(facts: Mapping, key: str, kind: type) -> Any:
    if key not in facts:
        raise BrokenRecord(f"lacks the key {key!r}; it has {sorted(facts)}")
    value = facts[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BrokenRecord(f"{key!r} is {str(value)[:40]!r}, expected a {kind.__name__}")
    return value
