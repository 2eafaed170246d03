"""How a record becomes an example."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff_core.training.data.augment import Augmentation
from mmdiff_core.training.data.config import DataConfig, Dropout
from mmdiff_core.training.data.files import FileExamples
from mmdiff_core.training.data.masks import encode_rle
from mmdiff_core.training.data.reading import read_jsonl
from mmdiff_core.training.example import ReferenceFace

from support.photos import CAPTION, CONFIG, same, segments, write_jsonl


def test_an_example_follows_from_seed_and_number_alone(records):
    one, two = FileExamples(records, 5, CONFIG), FileExamples(records, 5, CONFIG)
    forward = [one.example(i) for i in range(12)]
    assert all(same(forward[i], two.example(i)) for i in reversed(range(12)))
    other = FileExamples(records, 6, CONFIG)
    assert not any(same(example, other.example(i)) for i, example in enumerate(forward))
    for example in forward:
        assert (
            example.pixels.dtype == torch.float32
            and example.pixels.min() >= 0
            and example.pixels.max() <= 1
        )
        for subject in example.subjects:
            assert (
                example.caption[slice(*subject.span)] in ("dog", "ball")
                and subject.mask.shape == example.pixels.shape[1:]
            )
            count, *shape = subject.references.shape
            assert (
                1 <= count <= 5
                and shape == [3, 24, 24]
                and subject.references.min() >= 0
                and subject.references.max() <= 1
            )
    assert len(forward) == 12 and all(len(example.subjects) == 2 for example in forward)
    assert {len(s.references) for example in forward for s in example.subjects} == {1, 2, 3, 4, 5}


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
    copied = pickle.loads(pickle.dumps(source))  # noqa: S301  its own bytes
    assert same(copied.batch(4, 4), source.batch(4, 4))


def test_references_of_one_picture_are_different_looks_of_the_same_crop(records):
    source = FileExamples(records, 0, replace(CONFIG, references=(4, 4)))
    shown = source.example(1).subjects[0].references
    assert all(not torch.equal(shown[i], shown[j]) for i in range(4) for j in range(i))
    plain = FileExamples(
        records, 0, replace(CONFIG, references=(4, 4), augmentation=Augmentation.identity())
    ).example(1)
    assert all(
        torch.equal(r, plain.subjects[0].references[0]) for r in plain.subjects[0].references
    )


def test_an_identity_is_shown_by_its_other_pictures(tmp_path):
    def name(number, facts):
        if number in (0, 3, 6):
            facts["segments"][0]["identity"] = "rex"

    source = FileExamples(
        read_jsonl(write_jsonl(tmp_path, 9, name)).records,
        0,
        replace(CONFIG, references=(2, 2), augmentation=Augmentation.identity(), group=1),
    )
    seen = {}
    for index in range(9):
        number = source._draw(index).number
        dog = (
            source.example(index).subjects[0].references[:, 1].amax((1, 2)).mul(255).round().int()
            - 40
        )
        seen[number] = set(dog.tolist())
    assert seen[0] == {3, 6} and seen[3] == {0, 6} and seen[6] == {0, 3}
    assert all(seen[n] == {n} for n in (1, 2, 4, 5, 7, 8))


def test_dropout_comes_as_often_as_asked(records):
    source = FileExamples(
        records[:3], 2, replace(CONFIG, dropout=Dropout(0.3, 0.2), references=(1, 1), subjects=1)
    )
    drawn = [source.example(i) for i in range(300)]
    nothing = sum(e.caption == "" and not e.subjects for e in drawn)
    plain = sum(e.caption == CAPTION and not e.subjects for e in drawn)
    assert nothing / 300 == pytest.approx(0.3, abs=0.07) and plain / 300 == pytest.approx(
        0.2, abs=0.07
    )
    assert (
        sum(e.caption == CAPTION and len(e.subjects) == 1 for e in drawn) == 300 - nothing - plain
    )
    with pytest.raises(ValueError, match="sum is at most 1"):
        Dropout(0.8, 0.3)


def test_a_picture_that_breaks_later_is_replaced_the_same_way_every_time(tmp_path, caplog):
    def spoil(number, facts):
        if number == 4:
            facts["segments"][1]["mask"]["counts"] = [64 * 96]  # empty; only decoding tells

    path = write_jsonl(tmp_path, 9, spoil)
    data = (tmp_path / "7.png").read_bytes()
    # cut short; the header is whole
    (tmp_path / "7.png").write_bytes(data[: len(data) // 2])
    records = read_jsonl(path).records
    assert len(records) == 9
    one, two = FileExamples(records, 0, CONFIG), FileExamples(records, 0, CONFIG)
    drawn = [one.example(i) for i in range(24)]
    assert all(same(drawn[i], two.example(i)) for i in reversed(range(24)))
    assert (
        sorted(one.broken) == [4, 7]
        and "mask of 'ball' is empty" in one.broken[4]
        and "cannot be read" in one.broken[7]
    )
    # one line in each of the two sources
    assert sum("data.jsonl:5" in r.message for r in caplog.records) == 2


def test_data_that_turns_out_mostly_broken_ends_the_run(tmp_path):
    records = read_jsonl(write_jsonl(tmp_path, 9)).records
    for number in range(6):
        (tmp_path / f"{number}.png").unlink()
    source = FileExamples(records, 0, CONFIG)
    with pytest.raises(
        ValueError, match="5 of 9 records in the training data are broken, more than half"
    ):
        for index in range(40):
            source.example(index)


def test_a_subject_that_the_crop_loses_is_left_out_and_of_many_subjects_some_are_chosen(
    tmp_path, records
):
    wide = Image.new("RGB", (200, 40))
    wide.save(tmp_path / "wide.png")
    masks = np.zeros((2, 40, 200), bool)
    masks[0, 10:30, 2:12], masks[1, 10:30, 150:170] = True, True
    line = {"image": "wide.png", "caption": CAPTION, "segments": segments(list(masks))}
    for segment, mask in zip(line["segments"], masks):
        segment["mask"] = encode_rle(mask)
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    lost = FileExamples(
        read_jsonl(tmp_path / "data.jsonl").records, 0, replace(CONFIG, aspect=1.0)
    ).example(0)
    assert lost.caption == CAPTION and len(lost.subjects) == 1 and lost.subjects[0].mask.sum() > 0
    few = FileExamples(records, 0, replace(CONFIG, subjects=1))
    assert {few.example(i).subjects[0].span for i in range(12)} == {(2, 5), (16, 20)}


def test_faces_are_asked_for_each_reference_and_a_subject_without_one_is_left_out(records):
    def faces(crop):
        # the green ball has no face
        if crop[1].max() > crop[0].max():
            return None
        return ReferenceFace(torch.full((512,), float(crop.mean())), crop.new_zeros(3, 8, 8))

    example = FileExamples(records, 0, replace(CONFIG, references=(3, 3)), faces).example(0)
    assert [example.caption[slice(*s.span)] for s in example.subjects] == ["dog"]
    found = example.subjects[0].faces
    assert found.embeddings.shape == (3, 512) and found.crops.shape == (3, 3, 8, 8)


def test_a_config_from_json_is_checked_field_by_field():
    config = DataConfig.from_dict(
        json.loads(
            '{"side": 64, "references": [1, 2], "dropout": {"caption": 0.2}, '
            '"augmentation": {"scale": [1, 1]}}'
        )
    )
    assert (
        config.references == (1, 2)
        and config.dropout.caption == 0.2
        and config.augmentation.scale == (1, 1)
    )
    for text, says in (
        ('{"sides": 1}', "unknown fields .'sides'"),
        ('{"dropout": {"x": 1}}', "Dropout has unknown fields"),
        ('{"references": [0, 2]}', "references"),
        ('{"group": 0}', "data.group"),
    ):
        with pytest.raises(ValueError, match=says):
            DataConfig.from_dict(json.loads(text))


def test_what_a_record_tells_of_a_subject_reaches_its_examples(tmp_path):
    def tell(_number: int, facts: dict) -> None:
        facts["segments"][0]["told"] = "wet brown"

    source = FileExamples(read_jsonl(write_jsonl(tmp_path, change=tell)).records, 0, CONFIG)
    told = {"dog": "wet brown", "ball": ""}
    seen = 0
    for example in map(source.example, range(12)):
        for subject in example.subjects:
            seen += 1
            assert subject.told == told[example.caption[slice(*subject.span)]]
    assert seen > 5
