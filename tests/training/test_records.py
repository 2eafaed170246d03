"""What a record is, in every form it is stored in, and what is said of one that is wrong."""

from __future__ import annotations

import json
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff_core.training.data.masks import decode_rle, encode_rle
from mmdiff_core.training.data.reading import read_jsonl, read_records, read_shards

from support.photos import SIZES, picture, write_jsonl, write_tar

# what pycocotools 2 writes for the mask in the test of run lengths
COCO_RING = (
    "gc0:Y1JlN:n0HRO:k0GUO:h0HXO:e0G[O:c0G]O:b0F^O:a0G_O:`0F@:`0F@:`0F@:`0F@:`0F@:`0F@:"
    "a0E_O:b0F^O:c0E]O:e0E[O:h0DXO:k0EUO:n0DRO:"
    "Y1LQo0"
)


def told(record) -> list[tuple]:
    return [(segment.word, segment.span, segment.box) for segment in record.segments]


@pytest.mark.parametrize("masks_as", ["png", "npy"])
def test_tar_jsonl_and_folder_give_the_same_records(tmp_path, masks_as):
    lines = read_records(write_jsonl(tmp_path, 4)).records
    tar = write_tar(tmp_path / "shard.tar", 4, masks_as)
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "folder")  # noqa: S202  the test's own archive
    for other in (
        read_records(tar).records,
        read_records(tmp_path).records,
        read_records(tmp_path / "folder").records,
    ):
        assert len(lines) == len(other) == 4
        for a, b in zip(lines, other):
            assert (a.caption, a.size) == (b.caption, b.size)
            assert told(a) == told(b)
            x, y = a.decode(), b.decode()
            assert torch.equal(x.pixels, y.pixels) and torch.equal(x.masks, y.masks)


def test_a_span_that_is_not_its_word_is_left_out_counted_and_logged(tmp_path, caplog):
    def spoil(number, facts):
        if number == 2:
            facts["segments"][0]["start"] = 1

    read = read_jsonl(write_jsonl(tmp_path, 5, spoil))
    assert len(read.records) == 4 and len(read.broken) == 1
    assert [r.message for r in caplog.records] == [
        "data.jsonl:3 is left out: characters 1 to 5 of the caption are ' dog', "
        "but the word is 'dog'"
    ]


def _drop(key):
    return lambda facts: facts.pop(key)


def _box(*values):
    return lambda facts: facts["segments"][0].update(box=list(values))


@pytest.mark.parametrize(
    "spoil, says",
    [
        (_drop("caption"), "lacks the key 'caption'"),
        (_drop("image"), "lacks the key 'image'"),
        (_box(10, 10, 300, 20), "outside"),
        (_box(10, 10, 10, 20), "empty or outside"),
        (_box(1, 2), r"expected \[x0"),
        (lambda f: f.update(segments=[]), "no segments"),
        (lambda f: f["segments"][0].pop("mask"), "segment 1 has no mask"),
        (lambda f: f.update(image="0.jsonl"), "cannot be read"),
        (lambda f: f["segments"].append(f["segments"][0]), "share characters"),
        (lambda f: f.update(caption=3), "expected a str"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(tmp_path, spoil, says, caplog):
    read = read_jsonl(
        write_jsonl(tmp_path, 3, lambda number, facts: spoil(facts) if number == 1 else None)
    )
    assert len(read.records) == 2 and len(read.broken) == len(caplog.records) == 1
    assert re.search(says, read.broken[0][1])


def test_a_data_set_that_is_mostly_broken_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="3 of 5 records .* broken, more than half. "
        "The first ones: data.jsonl:1: lacks the key 'caption'",
    ):
        read_jsonl(
            write_jsonl(tmp_path, 5, lambda number, facts: number < 3 and facts.pop("caption"))
        )
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no records"):
        read_jsonl(tmp_path / "none.jsonl")


def test_a_line_that_is_not_json_and_a_picture_without_json_are_told_apart(tmp_path):
    path = write_jsonl(tmp_path, 3)
    path.write_text(path.read_text() + '{"image": "0.p')
    assert "is not JSON" in read_jsonl(path).broken[0][1]
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="holds no records"):
        read_shards([tmp_path / "folder"])


def test_a_compressed_or_cut_shard_is_refused_in_words(tmp_path):
    whole = write_tar(tmp_path / "shard.tar", 2, "png").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(ValueError, match="not a whole uncompressed tar"):
        read_records(tmp_path / "cut.tar")
    with pytest.raises(ValueError, match="unpacked to .tar first"):
        read_records(tmp_path / "shard.tar.gz")


def test_run_lengths_come_back_as_they_went_and_as_coco_writes_them():
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    assert np.array_equal(decode_rle(json.loads(json.dumps(encode_rle(mask)))), mask)
    full = np.ones((3, 2), bool)
    assert encode_rle(full)["counts"] == [0, 6] and np.array_equal(
        decode_rle(encode_rle(full)), full
    )
    y, x = np.mgrid[:60, :50]
    ring = ((y - 33) ** 2 / 400 + (x - 21) ** 2 / 144 < 1) & ~((y > 25) & (y < 31))
    assert np.array_equal(decode_rle({"size": [60, 50], "counts": COCO_RING}), ring)
    with pytest.raises(ValueError, match="sum to 5, expected 2 x 3 = 6"):
        decode_rle({"size": [2, 3], "counts": [2, 3]})


def test_a_picture_that_lies_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6

    def turn(number, facts):
        if number == 0:
            picture(0, SIZES[0])[0].rotate(90, expand=True).save(
                tmp_path / "0.jpg", exif=exif, quality=95
            )
            facts["image"] = "0.jpg"

    record = read_jsonl(write_jsonl(tmp_path, 3, turn)).records[0]
    decoded = record.decode()
    assert record.size == (64, 96) and decoded.pixels.shape == (3, 64, 96)
    assert decoded.pixels[:, decoded.masks[0] == 1].mean(1)[0] > 180 / 255
