"""An annotation that several processes share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmdiff_core.training.data.annotation.folder import AnnotationFile
from mmdiff_core.training.data.annotation.parts import join_parts, open_part

from support.annotation import Fakes, annotated
from support.launched import COMMAND, launch
from support.photos import SIZES, picture

# the command with models that know the photos; `last` is the image at which process 1 dies
WITH_FAKES = """
import os
from mmdiff_core.training.data.annotation import models
from support.annotation import Fakes
fakes, last = Fakes(), {last}
def segment(image, boxes, known=fakes.segment):
    if os.environ["RANK"] == "1" and fakes.calls["ground"] == last:
        os._exit(9)
    return known(image, boxes)
fakes.segment = segment
models.load_models = lambda *_: fakes.models()
"""


@pytest.fixture
def many(album) -> Path:
    """Nine photos, one of which has no class noun in its caption; in two folders."""
    (album / "more").mkdir()
    for number in range(4, 9):
        picture(number, SIZES[number % 3])[0].save(album / "more" / f"{number}.png")
    (album / "2.txt").write_text("a quiet room")
    return album


def shared(folder: Path, out: Path, last: int = 99):
    arguments = ["annotate", folder, out, "--captioner", out, "--grounder", out]
    code = WITH_FAKES.format(last=last) + COMMAND
    return launch([*map(str, arguments), "--segmenter", str(out), "--previews", "2"], code)


def left(out: Path) -> set[str]:
    """The files beside OUT."""
    return {path.name for path in out.parent.glob(f"{out.stem}*") if not path.is_dir()}


def test_two_processes_write_the_same_records_as_one(many, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    annotated(many, one, Fakes())
    ended = shared(many, two)
    assert [process.code for process in ended] == [0, 0], ended
    assert two.read_bytes() == one.read_bytes() and len(one.read_text().splitlines()) == 8
    rejected = tmp_path / "two_rejected.jsonl"
    assert rejected.read_bytes() == (tmp_path / "one_rejected.jsonl").read_bytes()
    assert left(two) == {"two.jsonl", "two.jsonl.lock", "two_rejected.jsonl"}
    shares = [len(re.findall(r"\d/\d · ", text)) for _, text in ended]
    assert min(shares) > 0 and all("process" in text for _, text in ended)
    previews = sorted(path.name for path in (tmp_path / "two_previews").iterdir())
    assert {"0-00000001.jpg", "1-00000001.jpg"} <= set(previews)


def test_when_a_process_dies_the_others_say_so_and_the_next_start_goes_on(many, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    annotated(many, one, Fakes())
    first, second = shared(many, two, last=2)
    assert second.code == 9 and first.code == 1
    assert "another process ended; its own message says why" in first.said
    assert {"two_part-0.jsonl", "two_part-1.jsonl"} <= left(two)
    ended = shared(many, two)
    assert [process.code for process in ended] == [0, 0], ended
    assert "3 images to do, 6 are done" in ended[0].said
    assert sorted(two.read_bytes().splitlines()) == sorted(one.read_bytes().splitlines())
    assert left(two) == {"two.jsonl", "two.jsonl.lock", "two_rejected.jsonl"}


def test_parts_are_joined_once_also_when_that_was_stopped_or_a_line_was_cut(many, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    annotated(many, one, Fakes())
    lines = one.read_bytes().splitlines(keepends=True)
    whole = AnnotationFile(two)
    open_part(whole, 0).out.write_bytes(b"".join(lines[::2]))
    open_part(whole, 1).out.write_bytes(b"".join(lines[1::2]) + lines[0][:40])
    two.write_bytes(b"".join(lines[:3]))  # the first call got so far
    join_parts(two)
    join_parts(two)
    assert two.read_bytes() == one.read_bytes() and left(two) == {"two.jsonl"}
