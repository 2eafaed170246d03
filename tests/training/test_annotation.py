"""How records are made from bare photos, with models that know them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff_core.training.data.annotation import folder as folders
from mmdiff_core.training.data.annotation import pipeline
from mmdiff_core.training.data.annotation.nouns import find_nouns, read_classes
from mmdiff_core.training.data.reading import read_records

from support.annotation import Fakes, annotated
from support.photos import CAPTION, SIZES, picture, segments


def test_an_annotated_folder_reads_as_records_with_the_right_masks(album, tmp_path):
    (album / "1.txt").write_text("one ball, no more\n")
    fakes = Fakes()
    annotated(album, tmp_path / "out.jsonl", fakes)
    read = read_records(tmp_path / "out.jsonl")
    assert len(read.records) == 4 and not read.broken and fakes.calls["caption"] == 3
    words = [
        (n, segment.word) for n, record in enumerate(read.records) for segment in record.segments
    ]
    both = ("dog", "ball")
    assert words == [*zip((0, 0), both), (1, "ball"), *zip((2, 2), both), *zip((3, 3), both)]
    decoded = read.records[0].decode()
    assert torch.equal(decoded.masks == 1, torch.from_numpy(np.stack(picture(0, SIZES[0])[1])))
    line = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert line["image"] == "album/0.png" and set(line["segments"][0]) >= {
        "id",
        "word",
        "start",
        "end",
        "box",
        "mask",
    }
    assert str(tmp_path) not in (tmp_path / "out.jsonl").read_text()


def test_annotation_goes_on_where_it_stopped(album, tmp_path):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    annotated(album, whole, Fakes())
    hidden = [album / "2.png", album / "3.png"]
    for path in hidden:
        path.rename(path.with_suffix(".away"))
    annotated(album, out, Fakes())
    for path in hidden:
        path.with_suffix(".away").rename(path)
    fakes = Fakes()
    progress = annotated(album, out, fakes)
    assert fakes.calls["ground"] == progress.total == 2 and out.read_text() == whole.read_text()
    assert annotated(album, out, fakes).total == 0 and fakes.calls["ground"] == 2


@pytest.mark.parametrize("cut", [1, 30])
def test_a_truncated_last_line_is_repaired(album, tmp_path, cut, caplog):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    annotated(album, whole, Fakes())
    # one byte: only the line's end is missing
    out.write_bytes(whole.read_bytes()[:-cut])
    progress = annotated(album, out, Fakes())
    assert out.read_text() == whole.read_text() and progress.total == (0 if cut == 1 else 1)
    assert any("is removed" in r.message for r in caplog.records) == (cut > 1)


def test_previews_show_boxes_masks_and_words(album, tmp_path):
    annotated(album, tmp_path / "out.jsonl", Fakes(), previews=2)
    found = sorted((tmp_path / "out_previews").iterdir())
    assert [p.name for p in found] == ["00000001.jpg", "00000003.jpg"]
    with Image.open(found[0]) as image:
        assert image.size == (96, 64 + 16)
    drawn = np.array(pipeline.preview(*_previewed()))
    assert (
        (drawn[20, 10] == (230, 60, 60)).all()
        and (drawn[45, 20] == (215, 50, 50)).all()
        and not (drawn[66:, :60] == 255).all()
    )


def _previewed():
    image, masks = picture(0, SIZES[0])
    return image, {"caption": CAPTION, "segments": segments(masks)}, masks


def test_rejects_are_counted_by_reason_recorded_and_not_done_again(album, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (album / "0.txt").write_text("a quiet room")  # no class noun
    (album / "1.png").write_bytes(b"not a picture")
    (album / "2.txt").write_text("a cat")  # nothing found
    progress = annotated(album, tmp_path / "out.jsonl", Fakes())
    assert progress.reasons == {
        "no class noun that occurs once in the caption": 1,
        "unreadable": 1,
        "no noun with one box of its own": 1,
    }
    lines = [
        json.loads(line) for line in (tmp_path / "out_rejected.jsonl").read_text().splitlines()
    ]
    assert [line["image"] for line in lines] == ["album/0.png", "album/1.png", "album/2.png"]
    assert sum("is left out" in r.message for r in caplog.records) == 3
    assert annotated(album, tmp_path / "out.jsonl", Fakes()).total == 0


def test_masks_that_are_specks_or_the_whole_picture_are_rejected(album, tmp_path):
    progress = annotated(album, tmp_path / "out.jsonl", Fakes(), rules=pipeline.Rules(smallest=0.5))
    assert progress.reasons == {"no mask of a fitting size": 4}


def test_one_odd_picture_is_rejected_and_failing_models_stop_the_command(tmp_path, album):
    progress = annotated(album, tmp_path / "out.jsonl", Fakes(fail=RuntimeError("too thin")))
    assert (
        progress.reasons == {"a model failed": 4}
        and "too thin" in (tmp_path / "out_rejected.jsonl").read_text()
    )
    picture(5, SIZES[0])[0].save(album / "5.png")
    with pytest.raises(ValueError, match="failed on 5 images in a row.*out of memory"):
        annotated(album, tmp_path / "again.jsonl", Fakes(fail=RuntimeError("out of memory")))
    assert not (tmp_path / "again_rejected.jsonl").exists()


def test_nouns_are_whole_words_that_stand_once():
    find = find_nouns
    assert find("A Dog beside a hot dog", ("dog", "hot dog")) == {
        "dog": (2, 5),
        "hot dog": (15, 22),
    }
    assert find("a dog and a dog and dogs and a cat", ("dog", "cat")) == {"cat": (31, 34)}
    assert find("a doghouse", ("dog",)) == {}
    assert {"man", "polar bear", "tent"} <= set(read_classes(None))


def test_overlapping_detections_are_one_and_a_noun_with_two_boxes_is_none():
    found = [
        pipeline.Detection("dog", (0, 0, 10, 10), 0.9),
        pipeline.Detection("cat", (0, 0, 10, 11), 0.8),
        pipeline.Detection("ball", (20, 0, 30, 10), 0.7),
        pipeline.Detection("ball", (40, 0, 50, 10), 0.6),
        pipeline.Detection("hat", (-9, 2.4, 99, 30), 0.5),
        pipeline.Detection("pig", (60, 0, 70, 9), 0.4),
    ]
    chosen = pipeline.choose(found, ["dog", "cat", "ball", "hat"], (64, 32), pipeline.Rules())
    assert [(f.word, f.box) for f in chosen] == [("dog", (0, 0, 10, 10)), ("hat", (0, 2, 64, 30))]


def test_progress_tells_rate_and_rejects():
    told = []
    progress = folders.AnnotationProgress(2, told.append, every=0)
    progress.step("unreadable")
    progress.step()
    assert (
        "1/2" in told[0] and "2/2" in told[1] and "1 rejected" in told[1] and "images/s" in told[1]
    )
