"""Random damage to training data: a bad record is skipped, counted and named, the others are as
before.

A few seconds' worth; `--mutations 2000` makes a long run of it (see tests/README.md).
"""

from __future__ import annotations

import json
import os
import random
import struct
import tarfile
import zlib

import numpy as np
import pytest

from mmdiff_core.training.data import reading
from mmdiff_core.training.data.config import DataConfig
from mmdiff_core.training.data.files import FileExamples
from mmdiff_core.training.data.images import BrokenRecord
from mmdiff_core.training.data.reading import read_records

from support import small_files
from support.mutations import (
    Tally,
    dumps,
    judge,
    limited,
    mutated_bytes,
    mutated_json,
    nested,
    sentence,
)

COUNT = 6


def decoded(path) -> dict[str, object]:
    """Every record by its name: what it decodes to, or why it is left out."""
    read = read_records(path)
    found: dict[str, object] = dict(read.broken)
    for record in read.records:
        try:
            whole = record.decode()
            found[record.name] = (record.caption, whole.pixels, whole.masks)
        except BrokenRecord as error:
            found[record.name] = str(error)
    return found


def others_are_whole(original: dict, tally: Tally, may_change: int = 1):
    """Whether all records but one are as they were, and the reasons are sentences."""

    def unchanged(found: dict) -> bool:
        kept = sum(small_files.equal(found.get(name), whole) for name, whole in original.items())
        reasons = [value for value in found.values() if isinstance(value, str)]
        tally.skipped += bool(reasons)
        return kept >= len(original) - may_change and all(map(sentence, reasons))

    return unchanged


def test_damage_to_a_line(tmp_path, tally, mutations):
    facts = []
    for number in range(COUNT):
        told, image, _ = small_files.record(number)
        (tmp_path / f"{number}.png").write_bytes(image)
        facts.append(told)
    lines = [json.dumps(told).encode() for told in facts]
    original = decoded(small_files.write_lines(tmp_path, lines))
    for number in range(mutations):
        rng, damaged = random.Random(number), list(lines)
        at = rng.randrange(COUNT)
        if number % 3:
            damaged[at] = dumps(mutated_json(facts[at], rng)).encode()
        else:
            damaged[at] = mutated_bytes(lines[at], rng).replace(b"\n", b" ")
        path = small_files.write_lines(tmp_path, damaged)
        same = others_are_whole(original, tally)
        judge(tally, number, lambda path=path: decoded(path), same, ())


def test_damage_to_a_member_of_a_shard(tmp_path, tally, mutations):
    members = small_files.members(COUNT)
    path = tmp_path / "shard.tar"
    path.write_bytes(small_files.tar_of(members))
    original = decoded(path)
    for number in range(mutations):
        rng = random.Random(number)
        name = rng.choice(sorted(members))
        changed = members | {name: mutated_bytes(members[name], rng)}
        path.write_bytes(small_files.tar_of(changed))
        judge(tally, number, lambda: decoded(path), others_are_whole(original, tally), ())


def test_a_damaged_image_or_mask_in_a_png_is_never_used(tmp_path, tally, mutations):
    members = small_files.members(COUNT)
    path = tmp_path / "shard.tar"
    path.write_bytes(small_files.tar_of(members))
    original = decoded(path)

    def as_it_was_or_told(found: dict) -> bool:
        tally.skipped += any(isinstance(value, str) for value in found.values())
        return all(
            isinstance(found[name], str) or small_files.equal(found[name], whole)
            for name, whole in original.items()
        )

    for number in range(mutations // 2):
        rng = random.Random(number)
        name = rng.choice(sorted(name for name in members if name.endswith(".png")))
        changed = members | {name: mutated_bytes(members[name], rng)}
        path.write_bytes(small_files.tar_of(changed))
        judge(tally, number, lambda: decoded(path), as_it_was_or_told, ())


def test_damage_to_a_shard_itself(tmp_path, tally, mutations):
    """Its own headers: the shard is refused by its name, or some records are gone."""
    path = tmp_path / "shard.tar"
    data = small_files.tar_of(small_files.members(COUNT))
    path.write_bytes(data)
    original = decoded(path)
    for number in range(mutations // 2):
        path.write_bytes(mutated_bytes(data, random.Random(number)))
        judge(
            tally,
            number,
            lambda: decoded(path),
            others_are_whole(original, tally, may_change=COUNT),
            (ValueError,),
        )


# ---------------------------------------------------------------- the smallest input of each kind


def spoilt(tmp_path, change) -> dict[str, object]:
    """A data set whose second record was changed."""
    lines = []
    for number in range(COUNT):
        facts, image, _ = small_files.record(number)
        (tmp_path / f"{number}.png").write_bytes(image)
        if number == 1:
            change(facts, facts["segments"][0], tmp_path)
        lines.append(dumps(facts).encode())
    return decoded(small_files.write_lines(tmp_path, lines))


def fifo(facts, segment, folder):
    os.mkfifo(folder / "pipe.png")
    facts["image"] = "pipe.png"


def fifo_mask(facts, segment, folder):
    os.mkfifo(folder / "pipe.png")
    segment["mask"] = "pipe.png"


def big_header(facts, segment, folder):
    """A .npy file whose header announces 80 GB, or is itself 100 MB long."""
    del segment["mask"]
    data = small_files.npy(np.zeros((small_files.SIDE, small_files.SIDE + 4), np.uint8))
    (folder / "map.npy").write_bytes(data.replace(b"(16, 20), }", b"(10**5, 10**5)}"))
    facts["segmap"] = "map.npy"


def shape_of_the_header(facts, segment, folder):
    big_header(facts, segment, folder)
    data = small_files.npy(np.zeros((16, 20), np.uint8))
    (folder / "map.npy").write_bytes(data.replace(b"(16, 20), }   ", b"(99999, 99999)}"[:14]))


def bomb(facts, segment, folder):
    """A small file of a picture with 40,000 x 40,000 pixels."""
    head = struct.pack(">II5B", 40_000, 40_000, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I4s", len(head), b"IHDR") + head
    chunk += zlib.crc32(b"IHDR" + head).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + bytes(64))
    facts["image"] = "bomb.png"


def rle(size, counts):
    return lambda facts, segment, folder: segment.update(mask={"size": size, "counts": counts})


def put(**changes):
    return lambda facts, segment, folder: segment.update(changes)


KINDS = {
    "runs whose sum overflows": rle([16, 20], [2**63 - 1, 2**63 - 1, 322]),
    "another overflow": rle([80, 96], [2**63 - 1, 2**63 - 1, 7682]),
    "runs of 10^30": rle([16, 20], [10**30, 5]),
    "a negative run": rle([16, 20], [-5, 325]),
    "a fraction of a run": rle([16, 20], [160.5, 159.5]),
    "a giant size": rle([100_000, 100_000], [10**10]),
    "a size of 10^30": rle([10**30, 10**30], [1]),
    "compressed runs without an end": rle([16, 20], "o" * 100_000),
    "compressed runs of other letters": rle([16, 20], "\x1b[31m\xff"),
    "runs in runs": rle([16, 20], nested(3000)),
    "a box that is not a number": put(box=[float("nan"), 3, 9, 9]),
    "an endless box": put(box=[2, 3, float("inf"), 9]),
    "a box of 10^400": put(box=[2, 3, 10**400, 9]),
    "a box of words": put(box=["2", "3", "9", "9"]),
    "an end of 10^30": put(end=10**30),
    "an end from behind": put(end=-12),
    "half a letter": put(word="\ud800"),
    "an id of 10^30": put(id=10**30),
    "an identity of many": put(identity=nested(40)),
    "a deep record": lambda facts, segment, folder: facts.update(x=nested(100_000)),
    "no name of a file": lambda facts, segment, folder: facts.update(image="a\x00b.png"),
    "a folder": lambda facts, segment, folder: facts.update(image="."),
    "a header of 80 GB": big_header,
    "a header of another shape": shape_of_the_header,
    "a picture of 1600 megapixels": bomb,
}
if hasattr(os, "mkfifo"):
    KINDS |= {"a pipe for a picture": fifo, "a pipe for a mask": fifo_mask}


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS.keys())
def test_a_bad_record_is_skipped_counted_and_named(tmp_path, change, caplog):
    with limited():
        found = spoilt(tmp_path, change)
    bad = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    assert set(bad) == {"data.jsonl:2"} and len(found) == COUNT
    assert sentence(bad["data.jsonl:2"])


def test_training_goes_on_without_a_record_that_breaks_when_it_is_decoded(tmp_path):
    spoilt(tmp_path, rle([16, 20], [2**63 - 1, 2**63 - 1, 322]))
    records = read_records(tmp_path / "data.jsonl").records
    source = FileExamples(records, 0, DataConfig(side=16, multiple=8, group=2, reference_side=8))
    examples = [source.example(index) for index in range(12)]
    assert len(examples) == 12 and set(source.broken) == {1}


def test_a_line_without_an_end_is_one_bad_record(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_JSON", 3000)
    lines = [json.dumps(small_files.record(number)[0]).encode() for number in range(3)]
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(small_files.record(number)[1])
    lines[1] = b'{"caption": "' + b"x" * 20_000
    found = decoded(small_files.write_lines(tmp_path, lines))
    assert "bytes, expected at most 3000" in found["data.jsonl:2"] and len(found) == 3


@pytest.mark.parametrize("name", ["cut.tar", "odd.tar", "a pipe.tar", "pipe.jsonl", "gone.jsonl"])
def test_what_is_no_data_set_is_told_by_its_name(tmp_path, name):
    whole = small_files.tar_of(small_files.members(3))
    path = tmp_path / name
    if "pipe" in name and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif name == "cut.tar":
        path.write_bytes(whole[:900])
    elif name == "odd.tar":  # a size in the header that is none, under a checksum that fits
        member = tarfile.TarInfo("x")
        member.pax_headers = {"size": "9" * 30}
        path.write_bytes(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with limited(), pytest.raises(ValueError, match=name):
        read_records(path)
