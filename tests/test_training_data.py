"""The data layer's promises: what a record is, how it becomes an example, and how records are made from bare pictures."""
from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff_core.commands import main
from mmdiff_core.training.data import augment, cutouts
from mmdiff_core.training.data.annotation import folder as folders
from mmdiff_core.training.data.annotation import models, pipeline
from mmdiff_core.training.data.annotation.nouns import find_nouns, read_classes
from mmdiff_core.training.data.augment import Augmentation, Variation
from mmdiff_core.training.data.buckets import best_crop, bucket_sizes, crop_to_bucket, nearest_bucket
from mmdiff_core.training.data.config import DataConfig, Dropout
from mmdiff_core.training.data.files import FileExamples
from mmdiff_core.training.data.masks import decode_rle, encode_rle
from mmdiff_core.training.data.order import BucketOrder
from mmdiff_core.training.data.reading import read_jsonl, read_records, read_shards
from mmdiff_core.training.example import ReferenceFace

CAPTION = "a dog and a red ball"
# what pycocotools 2 writes for the mask in the test of run lengths
COCO_RING = ("gc0:Y1JlN:n0HRO:k0GUO:h0HXO:e0G[O:c0G]O:b0F^O:a0G_O:`0F@:`0F@:`0F@:`0F@:`0F@:`0F@:a0E_O:b0F^O:c0E]O:e0E[O:h0DXO:k0EUO:n0DRO:"
             "Y1LQo0")
SIZES = ((96, 64), (64, 96), (64, 64))          # width, height
CONFIG = DataConfig(side=64, multiple=16, group=4, reference_side=24, dropout=Dropout(0, 0))


def picture(number: int, size: tuple[int, int]) -> tuple[Image.Image, list[np.ndarray]]:
    """Noise on which a dog (red) stands left and a ball (green) right, and their masks [H W]."""
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 80, (height, width, 3), dtype=np.uint8)
    masks = [np.zeros((height, width), bool) for _ in range(2)]
    masks[0][20:50, 6:26], masks[1][30:44, width - 24:width - 10] = True, True
    pixels[masks[0]], pixels[masks[1]] = (200, 40 + number, 40), (40, 200, 40 + number)
    return Image.fromarray(pixels), masks


def segments(masks: list[np.ndarray], **more) -> list[dict]:
    boxes = [[int(np.nonzero(m.any(0))[0][0]), int(np.nonzero(m.any(1))[0][0]), int(np.nonzero(m.any(0))[0][-1]) + 1,
              int(np.nonzero(m.any(1))[0][-1]) + 1] for m in masks]
    words = (("dog", 2, 5), ("ball", 16, 20))
    return [{"id": i, "word": w, "start": a, "end": b, "box": box, **more} for i, ((w, a, b), box) in enumerate(zip(words, boxes), 1)]


def write_jsonl(folder: Path, count: int = 9, change=lambda number, facts: None) -> Path:
    """A data set of `count` pictures of three shapes; `change` may spoil a line's facts."""
    lines = []
    for number in range(count):
        image, masks = picture(number, SIZES[number % 3])
        image.save(folder / f"{number}.png")
        facts = {"image": f"{number}.png", "caption": CAPTION, "segments": segments(masks)}
        for segment, mask in zip(facts["segments"], masks):
            segment["mask"] = encode_rle(mask)
        change(number, facts)
        lines.append(json.dumps(facts) + "\n")
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "data.jsonl"


def write_tar(path: Path, count: int, masks_as: str) -> Path:
    """The same data set as a WebDataset shard, with masks as .png files or as the demo's map of ids."""
    with tarfile.open(path, "w") as tar:
        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for number in range(count):
            image, masks = picture(number, SIZES[number % 3])
            add(f"00000/{number}.json", json.dumps({"image_id": str(number), "caption": CAPTION, "segments": segments(masks)}).encode())
            add(f"00000/{number}.png", encoded(image))
            if masks_as == "png":
                for i, mask in enumerate(masks, 1):
                    add(f"00000/{number}.{i}.png", encoded(Image.fromarray(mask)))
            else:
                ids, data = masks[0] * 1.0 + masks[1] * 2.0, io.BytesIO()
                np.save(data, ids.astype(np.float32))
                add(f"00000/{number}.npy", data.getvalue())
    return path


def encoded(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def same(one, two) -> bool:
    """Whether two examples, or tuples of them, are equal to the last bit."""
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return (one.index, one.caption) == (two.index, two.caption) and torch.equal(one.pixels, two.pixels) and len(one.subjects) == len(
        two.subjects) and all(a.span == b.span and torch.equal(a.mask, b.mask) and torch.equal(a.references, b.references)
                              for a, b in zip(one.subjects, two.subjects))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return read_jsonl(write_jsonl(tmp_path_factory.mktemp("data"), 10)).records


@pytest.fixture
def square():
    """A cutout [4 40 40]: a disc of one colour."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    alpha = (((x - 19.5) ** 2 + (y - 19.5) ** 2) < 15 ** 2).float()[None]
    return torch.cat([torch.tensor([0.8, 0.4, 0.2]).view(3, 1, 1) * alpha, alpha])


# ---------------------------------------------------------------- records

@pytest.mark.parametrize("masks_as", ["png", "npy"])
def test_tar_jsonl_and_folder_give_the_same_records(tmp_path, masks_as):
    lines = read_records(write_jsonl(tmp_path, 4)).records
    tar = write_tar(tmp_path / "shard.tar", 4, masks_as)
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "folder")         # noqa: S202  the test's own archive
    for other in (read_records(tar).records, read_records(tmp_path).records, read_records(tmp_path / "folder").records):
        assert len(lines) == len(other) == 4
        for a, b in zip(lines, other):
            assert (a.caption, a.size) == (b.caption, b.size)
            assert [(s.word, s.span, s.box) for s in a.segments] == [(s.word, s.span, s.box) for s in b.segments]
            x, y = a.decode(), b.decode()
            assert torch.equal(x.pixels, y.pixels) and torch.equal(x.masks, y.masks)


def test_a_span_that_is_not_its_word_is_left_out_counted_and_logged(tmp_path, caplog):
    def spoil(number, facts):
        if number == 2:
            facts["segments"][0]["start"] = 1
    read = read_jsonl(write_jsonl(tmp_path, 5, spoil))
    assert len(read.records) == 4 and len(read.broken) == 1
    assert [r.message for r in caplog.records] == ["data.jsonl:3 is left out: characters 1 to 5 of the caption are ' dog', but the word is 'dog'"]


def _drop(key):
    return lambda facts: facts.pop(key)


def _box(*values):
    return lambda facts: facts["segments"][0].update(box=list(values))


@pytest.mark.parametrize("spoil, says", [
    (_drop("caption"), "lacks the key 'caption'"), (_drop("image"), "lacks the key 'image'"), (_box(10, 10, 300, 20), "outside"),
    (_box(10, 10, 10, 20), "empty or outside"), (_box(1, 2), r"expected \[x0"), (lambda f: f.update(segments=[]), "no segments"),
    (lambda f: f["segments"][0].pop("mask"), "segment 1 has no mask"), (lambda f: f.update(image="0.jsonl"), "cannot be read"),
    (lambda f: f["segments"].append(f["segments"][0]), "share characters"), (lambda f: f.update(caption=3), "expected a str"),
])
def test_what_is_wrong_with_a_record_is_said(tmp_path, spoil, says, caplog):
    read = read_jsonl(write_jsonl(tmp_path, 3, lambda number, facts: spoil(facts) if number == 1 else None))
    assert len(read.records) == 2 and len(read.broken) == len(caplog.records) == 1
    assert re.search(says, read.broken[0][1])


def test_a_data_set_that_is_mostly_broken_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 of 5 records .* broken, more than half. The first ones: data.jsonl:1: lacks the key 'caption'"):
        read_jsonl(write_jsonl(tmp_path, 5, lambda number, facts: number < 3 and facts.pop("caption")))
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
    assert encode_rle(full)["counts"] == [0, 6] and np.array_equal(decode_rle(encode_rle(full)), full)
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
            picture(0, SIZES[0])[0].rotate(90, expand=True).save(tmp_path / "0.jpg", exif=exif, quality=95)
            facts["image"] = "0.jpg"
    record = read_jsonl(write_jsonl(tmp_path, 3, turn)).records[0]
    decoded = record.decode()
    assert record.size == (64, 96) and decoded.pixels.shape == (3, 64, 96)
    assert decoded.pixels[:, decoded.masks[0] == 1].mean(1)[0] > 180 / 255


# ---------------------------------------------------------------- augmentation

def test_augmentation_zero_leaves_the_crop_unchanged(square):
    generator = torch.Generator().manual_seed(0)
    variation = augment.random_variation(Augmentation.identity(), generator)
    assert torch.equal(cutouts.vary(square, variation), square)
    pixels, masks = np.zeros((3, 50, 60), np.float32), np.zeros((50, 60), np.float32)
    pixels[:, 10:30, 20:40], masks[10:30, 20:40] = 0.5, 1
    crop = cutouts.cut_out(torch.from_numpy(pixels), torch.from_numpy(masks))
    shown = cutouts.reference(crop, crop.shape[-1], variation)
    assert torch.equal(shown, crop[:3])


def test_a_crop_is_square_holds_the_whole_subject_and_nothing_else():
    image, masks = picture(3, (96, 64))
    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
    crop = cutouts.cut_out(pixels, torch.from_numpy(masks[0]).float())
    assert crop.shape == (4, 34, 34)                                # 30 high, 5 % border on both sides, rounded
    assert crop[3].sum() == masks[0].sum() and torch.equal(crop[:3, crop[3] == 0], torch.zeros(3, int((crop[3] == 0).sum())))
    assert torch.allclose(crop[0, crop[3] == 1], torch.tensor(200 / 255))
    white = cutouts.on_background(crop, (1.0, 1.0, 1.0))
    assert (white[:, crop[3] == 0] == 1).all() and torch.equal(white[:, crop[3] == 1], crop[:3, crop[3] == 1])
    with pytest.raises(ValueError, match="empty"):
        cutouts.cut_out(pixels, torch.zeros(64, 96))


@pytest.mark.parametrize("rectangle", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_occlusion_covers_the_stated_share(square, rectangle, share):
    for at in (0.1, 0.45, 0.8):
        left = cutouts.vary(square, Variation(covered=share, cover=(rectangle, at, at)))
        assert 1 - left[3].sum() / square[3].sum() == pytest.approx(share, abs=0.02)
        assert not left[:3, left[3] == 0].any()


def test_flip_shift_and_scale_do_what_they_say(square):
    square[:, :, :20] = 0                                           # the right half of the disc
    centre = lambda cutout, axis: float((cutout[3].sum(axis) * torch.arange(40)).sum() / cutout[3].sum())   # noqa: E731
    assert centre(cutouts.vary(square, Variation(flipped=True)), 0) == pytest.approx(39 - centre(square, 0), abs=1e-3)
    assert centre(cutouts.vary(square, Variation(shift=(-0.1, 0))), 0) == pytest.approx(centre(square, 0) - 4, abs=0.01)
    assert centre(cutouts.vary(square, Variation(rotation=90)), 1) == pytest.approx(centre(square, 0), abs=0.5)
    assert cutouts.vary(square, Variation(scale=0.5))[3].sum() == pytest.approx(float(square[3].sum()) / 4, rel=0.05)


def test_colour_jitter_changes_the_subject_and_leaves_the_background_blank(square):
    for look in (Variation(brightness=0.7), Variation(contrast=0.5, brightness=1.1), Variation(saturation=0.3), Variation(hue=0.1)):
        out = cutouts.vary(square, look)
        assert torch.equal(out[3], square[3]) and not out[:3, square[3] == 0].any() and not torch.allclose(out, square)
    assert torch.allclose(cutouts.vary(square, Variation(brightness=0.5))[:3], square[:3] * 0.5)


def test_looks_stay_within_their_ranges_and_follow_from_the_generator():
    wanted, generator = Augmentation(clean=0), torch.Generator().manual_seed(1)
    looks = [augment.random_variation(wanted, generator) for _ in range(400)]
    assert all(0.6 <= x.scale <= 1.1 and abs(x.rotation) <= 15 and max(map(abs, x.shift)) <= 0.1 and abs(x.hue) <= 0.02 for x in looks)
    assert all(0.8 <= v <= 1.2 for x in looks for v in (x.brightness, x.contrast, x.saturation))
    assert sum(x.covered > 0 for x in looks) / 400 == pytest.approx(0.3, abs=0.08) and all(x.covered == 0 or 0.1 <= x.covered <= 0.4 for x in looks)
    assert looks[0] == augment.random_variation(wanted, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="augmentation.hue is 0.9, expected within 0 to 0.5"):
        Augmentation(hue=0.9)


# ---------------------------------------------------------------- buckets

def test_buckets_are_multiples_near_the_area_and_pictures_go_to_the_nearest():
    buckets = bucket_sizes(512, 64, 2.0)
    assert (512, 512) in buckets and (448, 576) in buckets and (576, 448) in buckets
    assert all(h % 64 == w % 64 == 0 and 0.85 <= h * w / 512**2 <= 1 and max(h, w) <= 2 * min(h, w) for h, w in buckets)
    assert buckets[nearest_bucket((1000, 1000), buckets)] == (512, 512)
    assert buckets[nearest_bucket((3000, 2300), buckets)] == (576, 448)
    assert all(max(h, w) / min(h, w) <= 2 for h, w in bucket_sizes(1024))
    with pytest.raises(ValueError, match="no buckets for side 32"):
        bucket_sizes(32, 64)


def test_masks_follow_the_crop():
    _, masks = picture(0, (96, 64))
    masks = torch.from_numpy(np.stack(masks)).float()
    pixels = torch.cat([masks, masks[:1]])                          # the picture shows its masks
    shown, inside, kept = crop_to_bucket(pixels, masks, (48, 48))
    assert shown.shape == (3, 48, 48) and inside.shape == (2, 48, 48)
    assert torch.equal(shown[:2], inside)
    for mask, share, before in zip(inside, kept, masks):
        assert mask.sum() / before.sum() == pytest.approx(float(share) * (48 / 64) ** 2, rel=0.05)


def test_the_crop_goes_where_the_subjects_are():
    masks = torch.zeros(2, 64, 200)
    masks[0, 10:50, 150:160], masks[1, 20:30, 190:200] = 1, 1
    top, left, height, width = best_crop(masks, (64, 200), (64, 64))
    assert (top, height, width) == (0, 64, 64) and left == 136                       # both are whole only at the right end
    masks[1] = 0
    masks[1, 20:30, 0:10] = 1                                                      # too far apart: the worst kept is lost either way
    _, left, _, _ = best_crop(masks, (64, 200), (64, 64))
    assert crop_to_bucket(torch.zeros(3, 64, 200), masks, (64, 64)).kept.max() == 1
    assert best_crop(torch.zeros(0, 64, 200), (64, 200), (64, 64))[1] == 68        # nobody: the middle


def test_every_picture_comes_equally_often_and_groups_share_a_bucket():
    order = BucketOrder((7, 3, 1), seed=3, group=4)
    places = [order.at(i) for i in range(11 * 4 * 3)]
    for start in range(0, len(places), 4):
        assert len({p.bucket for p in places[start:start + 4]}) == 1
    count = Counter((p.bucket, p.position) for p in places)
    assert set(count.values()) == {12} and len(count) == 11
    assert len(set(places)) == len(places)
    assert [order.at(i) for i in (100, 5, 77)] == [places[i] for i in (100, 5, 77)]


# ---------------------------------------------------------------- examples

def test_an_example_follows_from_seed_and_number_alone(records):
    one, two = FileExamples(records, 5, CONFIG), FileExamples(records, 5, CONFIG)
    forward = [one.example(i) for i in range(12)]
    assert all(same(forward[i], two.example(i)) for i in reversed(range(12)))
    assert not any(same(a, b) for a, b in zip(forward, (FileExamples(records, 6, CONFIG).example(i) for i in range(12))))
    for example in forward:
        assert example.pixels.dtype == torch.float32 and example.pixels.min() >= 0 and example.pixels.max() <= 1
        for subject in example.subjects:
            assert example.caption[slice(*subject.span)] in ("dog", "ball") and subject.mask.shape == example.pixels.shape[1:]
            count, *shape = subject.references.shape
            assert 1 <= count <= 5 and shape == [3, 24, 24] and subject.references.min() >= 0 and subject.references.max() <= 1
    assert [len(e.subjects) for e in forward] == [2] * 12 and {len(s.references) for e in forward for s in e.subjects} == {1, 2, 3, 4, 5}


def test_a_batch_is_its_two_halves_and_has_one_size(records):
    source = FileExamples(records, 0, replace(CONFIG, group=8))
    for start in (0, 8, 16, 24):
        whole = source.batch(start, 8)
        assert same(whole, source.batch(start, 4) + source.batch(start + 4, 4))
        assert same(whole[:2], source.batch(start, 2)) and len({e.pixels.shape for e in whole}) == 1
    assert len({e.pixels.shape for start in range(0, 80, 8) for e in source.batch(start, 1)}) == 3
    with pytest.raises(ValueError, match="Set data.group to a multiple of 3"):
        source.batch(0, 3)
    with pytest.raises(ValueError, match="from example 2 on"):
        source.batch(2, 4)


def test_a_source_that_was_sent_to_another_process_gives_the_same_batches(records):
    source = FileExamples(records, 0, CONFIG)
    assert same(pickle.loads(pickle.dumps(source)).batch(4, 4), source.batch(4, 4))     # noqa: S301  its own bytes


def test_references_of_one_picture_are_different_looks_of_the_same_crop(records):
    source = FileExamples(records, 0, replace(CONFIG, references=(4, 4)))
    shown = source.example(1).subjects[0].references
    assert all(not torch.equal(shown[i], shown[j]) for i in range(4) for j in range(i))
    plain = FileExamples(records, 0, replace(CONFIG, references=(4, 4), augmentation=Augmentation.identity())).example(1)
    assert all(torch.equal(r, plain.subjects[0].references[0]) for r in plain.subjects[0].references)


def test_an_identity_is_shown_by_its_other_pictures(tmp_path):
    def name(number, facts):
        if number in (0, 3, 6):
            facts["segments"][0]["identity"] = "rex"
    source = FileExamples(read_jsonl(write_jsonl(tmp_path, 9, name)).records, 0, replace(CONFIG, references=(2, 2),
                          augmentation=Augmentation.identity(), group=1))
    seen = {}
    for index in range(9):
        number = source._draw(index).number
        dog = source.example(index).subjects[0].references[:, 1].amax((1, 2)).mul(255).round().int() - 40
        seen[number] = set(dog.tolist())
    assert seen[0] == {3, 6} and seen[3] == {0, 6} and seen[6] == {0, 3}
    assert all(seen[n] == {n} for n in (1, 2, 4, 5, 7, 8))


def test_dropout_comes_as_often_as_asked(records):
    source = FileExamples(records[:3], 2, replace(CONFIG, dropout=Dropout(0.3, 0.2), references=(1, 1), subjects=1))
    drawn = [source.example(i) for i in range(300)]
    nothing = sum(e.caption == "" and not e.subjects for e in drawn)
    plain = sum(e.caption == CAPTION and not e.subjects for e in drawn)
    assert nothing / 300 == pytest.approx(0.3, abs=0.07) and plain / 300 == pytest.approx(0.2, abs=0.07)
    assert sum(e.caption == CAPTION and len(e.subjects) == 1 for e in drawn) == 300 - nothing - plain
    with pytest.raises(ValueError, match="sum is at most 1"):
        Dropout(0.8, 0.3)


def test_a_picture_that_breaks_later_is_replaced_the_same_way_every_time(tmp_path, caplog):
    def spoil(number, facts):
        if number == 4:
            facts["segments"][1]["mask"]["counts"] = [64 * 96]          # empty; only decoding tells
    path = write_jsonl(tmp_path, 9, spoil)
    data = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").write_bytes(data[: len(data) // 2])                # cut short; the header is whole
    records = read_jsonl(path).records
    assert len(records) == 9
    one, two = FileExamples(records, 0, CONFIG), FileExamples(records, 0, CONFIG)
    drawn = [one.example(i) for i in range(24)]
    assert all(same(drawn[i], two.example(i)) for i in reversed(range(24)))
    assert sorted(one.broken) == [4, 7] and "mask of 'ball' is empty" in one.broken[4] and "cannot be read" in one.broken[7]
    assert sum("data.jsonl:5" in r.message for r in caplog.records) == 2        # one line in each of the two sources


def test_data_that_turns_out_mostly_broken_ends_the_run(tmp_path):
    records = read_jsonl(write_jsonl(tmp_path, 9)).records
    for number in range(6):
        (tmp_path / f"{number}.png").unlink()
    source = FileExamples(records, 0, CONFIG)
    with pytest.raises(ValueError, match="5 of 9 records in the training data are broken, more than half"):
        for index in range(40):
            source.example(index)


def test_a_subject_that_the_crop_loses_is_left_out_and_of_many_subjects_some_are_chosen(tmp_path, records):
    wide = Image.new("RGB", (200, 40))
    wide.save(tmp_path / "wide.png")
    masks = np.zeros((2, 40, 200), bool)
    masks[0, 10:30, 2:12], masks[1, 10:30, 150:170] = True, True
    line = {"image": "wide.png", "caption": CAPTION, "segments": segments(list(masks))}
    for segment, mask in zip(line["segments"], masks):
        segment["mask"] = encode_rle(mask)
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    lost = FileExamples(read_jsonl(tmp_path / "data.jsonl").records, 0, replace(CONFIG, aspect=1.0)).example(0)
    assert lost.caption == CAPTION and len(lost.subjects) == 1 and lost.subjects[0].mask.sum() > 0
    few = FileExamples(records, 0, replace(CONFIG, subjects=1))
    assert {few.example(i).subjects[0].span for i in range(12)} == {(2, 5), (16, 20)}


def test_faces_are_asked_for_each_reference_and_a_subject_without_one_is_left_out(records):
    def faces(crop):
        if crop[1].max() > crop[0].max():                                   # the green ball has no face
            return None
        return ReferenceFace(torch.full((512,), float(crop.mean())), crop.new_zeros(3, 8, 8))
    example = FileExamples(records, 0, replace(CONFIG, references=(3, 3)), faces).example(0)
    assert [example.caption[slice(*s.span)] for s in example.subjects] == ["dog"]
    found = example.subjects[0].faces
    assert found.embeddings.shape == (3, 512) and found.crops.shape == (3, 3, 8, 8)


def test_a_config_from_json_is_checked_field_by_field():
    config = DataConfig.from_dict(json.loads('{"side": 64, "references": [1, 2], "dropout": {"caption": 0.2}, "augmentation": {"scale": [1, 1]}}'))
    assert config.references == (1, 2) and config.dropout.caption == 0.2 and config.augmentation.scale == (1, 1)
    for text, says in (('{"sides": 1}', "unknown fields .'sides'"), ('{"dropout": {"x": 1}}', "Dropout has unknown fields"),
                       ('{"references": [0, 2]}', "references"), ('{"group": 0}', "data.group")):
        with pytest.raises(ValueError, match=says):
            DataConfig.from_dict(json.loads(text))


# ---------------------------------------------------------------- annotation: the pipeline with fakes

class Fakes:
    """A captioner, grounder and segmenter that know `picture`. `calls` counts what they were asked; `fail` names an error to raise."""

    def __init__(self, caption: str = CAPTION, extra: tuple[pipeline.Detection, ...] = (), fail: Exception | None = None) -> None:
        self.text, self.extra, self.fail, self.calls = caption, extra, fail, Counter()

    def models(self) -> pipeline.Models:
        return pipeline.Models(self.caption, self.ground, self.segment)

    def caption(self, image) -> str:
        self.calls["caption"] += 1
        return self.text

    def ground(self, image, words) -> list[pipeline.Detection]:
        self.calls["ground"] += 1
        if self.fail:
            raise self.fail
        width = image.width
        boxes = {"dog": (5.6, 20.2, 26.0, 50.0), "ball": (width - 24.0, 30, width - 10, 44)}
        return [pipeline.Detection(w, boxes[w], 0.9) for w in words if w in boxes] + list(self.extra)

    def segment(self, image, boxes) -> np.ndarray:
        masks = np.zeros((len(boxes), image.height, image.width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            mask[y0:y1, x0:x1] = True
        return masks


def annotated(folder: Path, out: Path, fakes: Fakes, classes=("dog", "ball", "cat"), previews: int = 0, rules=None) -> folders.AnnotationProgress:
    file = folders.AnnotationFile(out)
    pictures = folders.find_images(folder, file)
    progress = folders.AnnotationProgress(len(pictures), lambda text: None)
    folders.annotate_folder(pictures, file, fakes.models(), classes, rules or pipeline.Rules(), progress, previews)
    return progress


@pytest.fixture
def album(tmp_path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(4):
        picture(number, SIZES[number % 3])[0].save(folder / f"{number}.png")
    return folder


def test_an_annotated_folder_reads_as_records_with_the_right_masks(album, tmp_path):
    (album / "1.txt").write_text("one ball, no more\n")
    fakes = Fakes()
    annotated(album, tmp_path / "out.jsonl", fakes)
    read = read_records(tmp_path / "out.jsonl")
    assert len(read.records) == 4 and not read.broken and fakes.calls["caption"] == 3
    assert [[s.word for s in r.segments] for r in read.records] == [["dog", "ball"], ["ball"], ["dog", "ball"], ["dog", "ball"]]
    decoded = read.records[0].decode()
    assert torch.equal(decoded.masks == 1, torch.from_numpy(np.stack(picture(0, SIZES[0])[1])))
    line = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert line["image"] == "album/0.png" and set(line["segments"][0]) >= {"id", "word", "start", "end", "box", "mask"}
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
    out.write_bytes(whole.read_bytes()[:-cut])                             # one byte: only the line's end is missing
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
    assert (drawn[20, 10] == (230, 60, 60)).all() and (drawn[45, 20] == (215, 50, 50)).all() and not (drawn[66:, :60] == 255).all()


def _previewed():
    image, masks = picture(0, SIZES[0])
    return image, {"caption": CAPTION, "segments": segments(masks)}, masks


def test_rejects_are_counted_by_reason_recorded_and_not_done_again(album, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (album / "0.txt").write_text("a quiet room")                             # no class noun
    (album / "1.png").write_bytes(b"not a picture")
    (album / "2.txt").write_text("a cat")                                    # nothing found
    progress = annotated(album, tmp_path / "out.jsonl", Fakes())
    assert progress.reasons == {"no class noun that occurs once in the caption": 1, "unreadable": 1, "no noun with one box of its own": 1}
    lines = [json.loads(line) for line in (tmp_path / "out_rejected.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["album/0.png", "album/1.png", "album/2.png"]
    assert sum("is left out" in r.message for r in caplog.records) == 3
    assert annotated(album, tmp_path / "out.jsonl", Fakes()).total == 0


def test_masks_that_are_specks_or_the_whole_picture_are_rejected(album, tmp_path):
    progress = annotated(album, tmp_path / "out.jsonl", Fakes(), rules=pipeline.Rules(smallest=0.5))
    assert progress.reasons == {"no mask of a fitting size": 4}


def test_one_odd_picture_is_rejected_and_failing_models_stop_the_command(tmp_path, album):
    progress = annotated(album, tmp_path / "out.jsonl", Fakes(fail=RuntimeError("too thin")))
    assert progress.reasons == {"a model failed": 4} and "too thin" in (tmp_path / "out_rejected.jsonl").read_text()
    picture(5, SIZES[0])[0].save(album / "5.png")
    with pytest.raises(ValueError, match="failed on 5 images in a row.*out of memory"):
        annotated(album, tmp_path / "again.jsonl", Fakes(fail=RuntimeError("out of memory")))
    assert not (tmp_path / "again_rejected.jsonl").exists()


def test_nouns_are_whole_words_that_stand_once():
    find = find_nouns
    assert find("A Dog beside a hot dog", ("dog", "hot dog")) == {"dog": (2, 5), "hot dog": (15, 22)}
    assert find("a dog and a dog and dogs and a cat", ("dog", "cat")) == {"cat": (31, 34)}
    assert find("a doghouse", ("dog",)) == {}
    assert {"man", "polar bear", "tent"} <= set(read_classes(None))


def test_overlapping_detections_are_one_and_a_noun_with_two_boxes_is_none():
    found = [pipeline.Detection("dog", (0, 0, 10, 10), 0.9), pipeline.Detection("cat", (0, 0, 10, 11), 0.8), pipeline.Detection("ball", (20, 0, 30, 10), 0.7),
             pipeline.Detection("ball", (40, 0, 50, 10), 0.6), pipeline.Detection("hat", (-9, 2.4, 99, 30), 0.5), pipeline.Detection("pig", (60, 0, 70, 9), 0.4)]
    chosen = pipeline.choose(found, ["dog", "cat", "ball", "hat"], (64, 32), pipeline.Rules())
    assert [(f.word, f.box) for f in chosen] == [("dog", (0, 0, 10, 10)), ("hat", (0, 2, 64, 30))]


def test_progress_tells_rate_and_rejects():
    told = []
    progress = folders.AnnotationProgress(2, told.append, every=0)
    progress.step("unreadable")
    progress.step()
    assert "1/2" in told[0] and "2/2" in told[1] and "1 rejected" in told[1] and "images/s" in told[1]


# ---------------------------------------------------------------- annotation: the real models, tiny and untrained

@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory) -> Path:
    """Folders blip, blip2, dino, sam, sam2 as `save_pretrained` writes them."""
    import transformers as T

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    eye = {**small, "image_size": 32, "patch_size": 16}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    opt = {"model_type": "opt", "vocab_size": 40, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "word_embed_proj_dim": 16, "max_position_embeddings": 128, **ends}
    seen = T.BlipImageProcessor(size={"height": 32, "width": 32})
    mask = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    hiera = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [64, 64],
             "blocks_per_stage": [1] * 4, "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1] * 4,
             "window_size_per_stage": [2] * 4, "global_attention_blocks": [], "window_positional_embedding_background_size": [2, 2]}
    configs = {
        "blip": T.BlipConfig(text_config={**small, **ends, "vocab_size": 20, "encoder_hidden_size": 16, "projection_dim": 8,
                                          "sep_token_id": 3}, vision_config=eye, projection_dim=8),
        "blip2": T.Blip2Config(vision_config=eye, qformer_config={**small, "encoder_hidden_size": 16, "vocab_size": 20}, text_config=opt,
                               num_query_tokens=4, image_token_index=12),
        "dino": T.GroundingDinoConfig(
            backbone_config=T.SwinConfig(image_size=32, embed_dim=8, depths=[1] * 3, num_heads=[1] * 3, window_size=2,
                                         out_features=["stage1", "stage2", "stage3"]),
            text_config={"model_type": "bert", "vocab_size": 20, "max_position_embeddings": 64, **small}, d_model=32, encoder_layers=1,
            decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
            num_queries=8, num_feature_levels=3, max_text_len=32),
        "sam": T.SamConfig(
            vision_config={"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
                           "patch_size": 16, "mlp_dim": 16, "global_attn_indexes": [0], "window_size": 2, "num_pos_feats": 8},
            prompt_encoder_config={**prompt, "image_embedding_size": 4}, mask_decoder_config=mask),
        "sam2": T.Sam2Config(
            vision_config={"backbone_config": hiera, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16,
                           "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}, prompt_encoder_config=prompt, mask_decoder_config=mask),
    }
    kinds = {"blip": T.BlipForConditionalGeneration, "blip2": T.Blip2ForConditionalGeneration, "dino": T.GroundingDinoForObjectDetection,
             "sam": T.SamModel, "sam2": T.Sam2Model}
    processors = {
        "blip": T.BlipProcessor(seen, _tokenizer(T)), "blip2": T.Blip2Processor(seen, _tokenizer(T), num_query_tokens=4),
        "dino": T.GroundingDinoProcessor(T.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}), _tokenizer(T)),
        "sam": T.SamProcessor(T.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})),
        "sam2": T.Sam2Processor(T.Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})),
    }
    for name, kind in kinds.items():
        kind(configs[name]).save_pretrained(folder / name)
        processors[name].save_pretrained(folder / name)
    return folder


def _tokenizer(T):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", ".", ",", "a", "dog", "ball", "hot")
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return T.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
                                     bos_token="[CLS]", eos_token="[SEP]")


@pytest.fixture
def cpu():
    return torch.device("cpu")


@pytest.mark.parametrize("name", ["blip", "blip2"])
def test_a_captioner_loads_from_a_folder_and_captions(tiny_models, cpu, name):
    captioner = models.BlipCaptioner(tiny_models / name, cpu)
    caption = captioner(picture(0, SIZES[0])[0])
    assert isinstance(caption, str) and caption == captioner(picture(0, SIZES[0])[0])


def test_the_grounder_loads_from_a_folder_and_finds_what_transformers_finds(tiny_models, cpu):
    grounder, image = models.DinoGrounder(tiny_models / "dino", cpu, threshold=0.0), picture(0, SIZES[0])[0]
    found = grounder(image, ["dog", "hot dog"])
    assert len(found) == 8 and {f.word for f in found} <= {"dog", "hot dog"}
    inputs = grounder.prepared(images=image, text="dog. hot dog.")
    with torch.inference_mode():
        out = grounder.model(**inputs)
    expected = grounder.processor.post_process_grounded_object_detection(
        out, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[image.size[::-1]])[0]
    assert torch.allclose(torch.tensor([f.box for f in found]), expected["boxes"], atol=1e-3)
    probability = out.logits[0].sigmoid()                               # [CLS] dog . hot dog . [SEP]
    for query, f in enumerate(found):
        assert f.score == pytest.approx(float(max(probability[query, 1], probability[query, [3, 4]].mean())))


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_a_segmenter_loads_from_a_folder_and_gives_a_mask_for_each_box(tiny_models, cpu, name):
    masks = models.SamSegmenter(tiny_models / name, cpu)(picture(0, SIZES[0])[0], [(5, 20, 26, 50), (70, 30, 90, 44), (0, 0, 96, 64)])
    assert masks.shape == (3, 64, 96) and masks.dtype == bool


def test_the_command_runs_from_folders_to_records_and_says_what_it_did(tiny_models, album, tmp_path, capsys, monkeypatch):
    for number in range(4):
        (album / f"{number}.txt").write_text("a dog")
    monkeypatch.setattr(pipeline, "fits", lambda mask, rules: mask.any())            # untrained masks may be any size
    args = ["annotate", str(album), str(tmp_path / "out.jsonl"), "--grounder", str(tiny_models / "dino"), "--segmenter", str(tiny_models / "sam2"),
            "--device", "cpu", "--threshold", "0", "--previews", "1"]
    assert main(args) == 0
    told = capsys.readouterr().err
    images = folders.repaired_images(tmp_path / "out.jsonl") + folders.repaired_images(tmp_path / "out_rejected.jsonl")
    assert "4 images to do" in told and "4/4" in told and sorted(images) == [f"album/{n}.png" for n in range(4)]
    assert main(args) == 0 and "0 images to do, 4 are done" in capsys.readouterr().err


def test_the_command_says_what_is_missing(tiny_models, album, tmp_path, capsys):
    def says(*args: object) -> str:
        assert main(["annotate", *map(str, args)]) == 1
        return capsys.readouterr().err
    out, dino, sam = tmp_path / "out.jsonl", tiny_models / "dino", tiny_models / "sam"
    both = ("--grounder", dino, "--segmenter", sam)
    assert "must end in .jsonl" in says(album, tmp_path / "out.json", *both)
    assert "is not a folder" in says(tmp_path / "nowhere", out, *both)
    assert "4 images have no caption" in says(album, out, *both)
    assert "is a 'sam', expected one of grounding-dino" in says(album, out, "--captioner", tiny_models / "blip", "--grounder", sam, "--segmenter", sam)
    assert "its config.json cannot be read" in says(album, out, *both, "--captioner", os.devnull)
