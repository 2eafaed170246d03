"""Random damage to training data: a bad record is skipped, counted and named, the others are as
before.

A few seconds' worth; `--mutations 2000` makes a long run of it (see tests/README.md).
"""

from __future__ import annotations

import json
import random

import pytest

from mmdiff_core.training.data.images import BrokenRecord
from mmdiff_core.training.data.reading import read_records

from support import small_files
from support.mutations import Tally, dumps, judge, mutated_bytes, mutated_json

COUNT = 6


@pytest.fixture
def tally(request) -> Tally:
    """Counts that fail the test at its end, with the first of each bad outcome."""
    made = Tally(request.node.name)
    yield made
    print(made)
    assert made.failures == 0, f"{made}; {made.worst}"


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


def others_are_whole(original: dict, may_change: int = 1):
    """Whether all records but one are as they were, and the reasons are sentences."""

    def unchanged(found: dict) -> bool:
        kept = sum(small_files.equal(found.get(name), whole) for name, whole in original.items())
        reasons = [value for value in found.values() if isinstance(value, str)]
        return kept >= len(original) - may_change and all(map(str.isprintable, reasons))

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
        judge(tally, number, lambda path=path: decoded(path), others_are_whole(original), ())


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
        judge(tally, number, lambda: decoded(path), others_are_whole(original), ())


def test_a_damaged_image_or_mask_in_a_png_is_never_used(tmp_path, tally, mutations):
    members = small_files.members(COUNT)
    path = tmp_path / "shard.tar"
    path.write_bytes(small_files.tar_of(members))
    original = decoded(path)

    def as_it_was_or_told(found: dict) -> bool:
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
            others_are_whole(original, may_change=COUNT),
            (ValueError,),
        )
