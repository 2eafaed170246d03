"""Records from JSON-lines files, from WebDataset shards, and from folders in the shards' layout.

The segments of all layouts are those of the published annotation demo: id, word, start, end, box.

JSON lines   {"image": PATH, "caption": TEXT, "segments": [{"id": 1, "word": "dog", "start": 2,
             "end": 5, "box": [x0, y0, x1, y1], "mask": {"size": [H, W], "counts": COCO run
             lengths} or PATH of a png, "identity": optional NAME, "told": optional words
             on how it looks, which can stand before its word; `objective.described_first`}]}
shards       tar files, or a folder of the same files (what the demo writes): KEY.jpg, .jpeg, .png
             or .webp; KEY.json, as a line above without the image; masks in it, in KEY.<id>.png,
             or in KEY.npy

Paths are relative to the JSON-lines file. A segment without `id` has its number, counted from 1.
KEY.npy (JSON lines: "segmap": PATH) holds the id of the segment at every pixel, 0 = background.
Boxes are in pixels, x1 and y1 just outside.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

from ...untrusted import listed, plain, quoted
from .images import IMAGE_ENDINGS, BrokenRecord, Stored, open_regular
from .masks import MOST_JSON, MapMask, PngMask, RunLengthMask, StoredMask
from .records import Record, field, parse_json, record_from

log = logging.getLogger(__name__)

# a record's name, and what makes the record or raises BrokenRecord
Makers = Iterable[tuple[str, Callable[[], Record]]]


@dataclass(frozen=True, slots=True)
class Records:
    """What was read; `broken` holds (name, reason) of every record that was left out."""

    records: tuple[Record, ...]
    broken: tuple[tuple[str, str], ...] = ()


def read_records(path: Path) -> Records:
    """Records of a .jsonl file, a .tar shard, a folder of shards, or a folder in their layout.

    Broken records are logged, left out and counted. ValueError: there are no records, or more
    than half of them are broken.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if path.is_dir():
        return read_shards(sorted(path.glob("*.tar")) or [path])
    if path.suffix == ".tar":
        with _source(path):
            return read_shards([path])
    raise ValueError(
        f"{path} is neither a .jsonl file, a .tar shard nor a folder (a compressed shard must be "
        "unpacked to .tar first)"
    )


def read_jsonl(path: Path) -> Records:
    """Records of a JSON-lines file, one a line; see `read_records`."""
    return _collect(_lines(Path(path)), str(path))


def read_shards(paths: Sequence[Path]) -> Records:
    """Records of tar shards or of folders in their layout; see `read_records`."""
    return _collect(chain.from_iterable(map(_members, paths)), ", ".join(map(str, paths[:3])))


def _collect(makers: Makers, source: str) -> Records:
    good: list[Record] = []
    broken: list[tuple[str, str]] = []
    for name, make in makers:
        try:
            good.append(make())
        except (BrokenRecord, OSError) as error:
            reason = str(error) if isinstance(error, BrokenRecord) else type(error).__name__
            log.warning("%s is left out: %s", name, reason)
            broken.append((name, reason))
    log.info("%s: %d records, %d left out", source, len(good), len(broken))
    check_share(broken, len(good) + len(broken), source)
    return Records(tuple(good), tuple(broken))


def check_share(broken: Sequence[tuple[str, str]], total: int, source: str) -> None:
    """ValueError when there are no records, or when more than half of them are broken."""
    if not total:
        raise ValueError(
            f"{source} holds no records; expected a line, or a KEY.json beside a KEY.jpg, for each "
            "image"
        )
    if 2 * len(broken) > total:
        shown = "; ".join(f"{name}: {reason}" for name, reason in broken[:3])
        raise ValueError(
            f"{len(broken)} of {total} records in {source} are broken, more than half. The first "
            f"ones: {shown}"
        )


# ---------------------------------------------------------------- JSON lines


def _lines(path: Path) -> Makers:
    offset = number = 0
    with _source(path) as file:
        while line := file.readline(MOST_JSON):
            number, length = number + 1, len(line)
            stored = Stored(str(path), offset, length)
            while not line.endswith(b"\n") and (more := file.readline(MOST_JSON)):
                line, length = more, length + len(more)
            offset += length
            name = f"{plain(path.name)}:{number}"
            if length > MOST_JSON:
                yield name, partial(_too_long, length)
            elif line.strip():
                yield name, partial(_from_line, name, line, stored, path.parent)


def _source(path: Path) -> BufferedReader:
    """A file of records, open for reading. ValueError where it is no ordinary file."""
    try:
        return open_regular(str(path))
    except BrokenRecord as error:
        raise ValueError(str(error)) from error


def _too_long(length: int) -> Record:
    raise BrokenRecord(f"has {length} bytes, expected at most {MOST_JSON}")


def _from_line(name: str, line: bytes, stored: Stored, base: Path) -> Record:
    facts = parse_json(line)
    image = Stored(str(base / field(facts, "image", str)))

    def mask_of(number: int, segment: Mapping) -> StoredMask:
        given = segment.get("mask")
        if isinstance(given, str):
            return PngMask(Stored(str(base / given)))
        if given is None and isinstance(facts.get("segmap"), str):
            return MapMask(Stored(str(base / facts["segmap"])), _own_id(segment, number))
        return _run_lengths(given, stored, number)

    return record_from(name, facts, image, mask_of)


def _own_id(segment: Mapping, number: int) -> int:
    own = segment.get("id")
    return number + 1 if own is None else own


def _run_lengths(given: Any, record: Stored, number: int) -> RunLengthMask:
    if not isinstance(given, Mapping) or not {"size", "counts"} <= set(given):
        raise BrokenRecord(
            f"segment {number + 1} has no mask: found {quoted(given)}, expected run lengths "
            "with size and counts, a .png, or a .npy map of segment ids"
        )
    return RunLengthMask(record, number)


# ---------------------------------------------------------------- shards


def _members(path: Path) -> Makers:
    """Records by key: as in WebDataset, a file's name up to its first dot."""
    path = Path(path)
    members: dict[str, dict[str, Stored]] = {}
    for name, stored in _tar_index(path) if path.is_file() else _folder_index(path):
        folder, _, base = name.rpartition("/")
        key, _, ending = base.partition(".")
        members.setdefault(f"{folder}/{key}" if folder else key, {})[ending.lower()] = stored
    for key, files in members.items():
        if any(ending.split(".")[-1] == "json" for ending in files):
            name = plain(f"{path.name}:{key}")
            yield name, partial(_from_members, name, files)


def _tar_index(path: Path) -> list[tuple[str, Stored]]:
    """Names and positions of a tar file's members. "r:": a compressed file cannot be seeked in."""
    try:
        with closing(tarfile.open(path, "r:")) as tar:
            files = [member for member in tar if member.isfile() and not member.issparse()]
    except Exception as error:  # a damaged header makes tarfile raise whatever it likes
        raise ValueError(
            f"{path} is not a whole uncompressed tar file ({type(error).__name__}). Unpack it, or "
            "copy it again."
        ) from error
    return [(m.name, Stored(str(path), m.offset_data, m.size)) for m in files]


def _folder_index(path: Path) -> Iterator[tuple[str, Stored]]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield file.relative_to(path).as_posix(), Stored(str(file))


def _from_members(name: str, files: Mapping[str, Stored]) -> Record:
    image = next((files[end[1:]] for end in IMAGE_ENDINGS if end[1:] in files), None)
    if image is None or "json" not in files:
        raise BrokenRecord(
            f"has {listed(sorted(files))}, expected json and one of {', '.join(IMAGE_ENDINGS)}; "
            "there must be no other dot in the name"
        )

    def mask_of(number: int, segment: Mapping) -> StoredMask:
        own = _own_id(segment, number)
        if f"{own}.png" in files:
            return PngMask(files[f"{own}.png"])
        if segment.get("mask") is None and "npy" in files:
            return MapMask(files["npy"], own)
        return _run_lengths(segment.get("mask"), files["json"], number)

    return record_from(name, parse_json(files["json"].read(MOST_JSON)), image, mask_of)
