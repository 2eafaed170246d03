"""The small world is drawn by rule and known exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmdiff_core.small_world import (
    descriptions,
    examples,
    references,
    scenes,
    sprites,
)


def dots(scene: scenes.Scene) -> torch.Tensor:
    return torch.from_numpy(scenes.draw(scene)[0]).movedim(-1, 0).float()


@pytest.mark.parametrize("kind", sprites.CLASSES)
def test_every_class_is_drawn_in_its_frame_with_every_accessory(kind):
    rng = np.random.default_rng(0)
    for accessory in sprites.ACCESSORIES:
        who = dataclasses.replace(scenes.random_identity(rng, "train"), accessory=accessory)
        colours, mask = scenes.sprite(kind, who)
        assert (
            colours.shape == (scenes.TALL, sprites.WIDTH, 3)
            and mask.any()
            and colours.min() >= 0
            and colours.max() <= 1
        )


def test_a_number_always_gives_the_same_scene_and_another_gives_another():
    assert scenes.scene("train", 0, 7) == scenes.scene("train", 0, 7)
    assert len({scenes.scene("train", 0, i) for i in range(200)}) == 200
    assert np.array_equal(
        scenes.draw(scenes.scene("test", 1, 3))[0], scenes.draw(scenes.scene("test", 1, 3))[0]
    )


def test_training_never_shows_a_held_out_individual_or_pair():
    for i in range(400):
        placed = scenes.scene("train", 0, i).placed
        assert not any(p.identity.held_out for p in placed)
        assert (
            not {frozenset((a.kind, b.kind)) for a in placed for b in placed if a is not b}
            & sprites.HELD_OUT_PAIRS
        )
    tests = [scenes.scene("test", 0, i) for i in range(400)]
    assert all(p.identity.held_out for s in tests for p in s.placed)
    assert any(
        {frozenset((s.placed[0].kind, s.placed[-1].kind))} & sprites.HELD_OUT_PAIRS for s in tests
    )


def test_a_caption_names_every_subject_where_its_span_says_and_the_place():
    for i in range(50):
        s = scenes.scene("train", 2, i)
        nouns = [s.caption[a:b] for a, b in s.spans()]
        assert nouns == [p.kind for p in s.placed]
        assert s.caption.endswith(sprites.PLACES[s.place])


def test_a_described_caption_tells_what_is_true_and_its_spans_are_the_nouns():
    for i in range(200):
        rng = np.random.default_rng(i)
        s = descriptions.describe(scenes.scene("train", 2, i), rng)
        nouns = [s.caption[a:b] for a, b in s.spans()]
        assert nouns == [p.kind for p in s.placed]
        assert len(s.caption.split()) <= descriptions.LONGEST
        for p in s.placed:
            assert set(p.told) <= set(descriptions.words_of(p.identity))
        assert descriptions.plainly(s).caption == scenes.scene("train", 2, i).caption


def test_hues_are_told_by_the_nearest_of_twelve_words():
    who = scenes.Identity(0.99, 0.34, "dots", "red", "bow")
    assert descriptions.words_of(who) == ("fierce", "red", "green", "dotted", "bow")


def test_masks_are_exactly_the_subjects_dots():
    for i in range(20):
        s = scenes.scene("train", 4, i)
        image, masks = scenes.draw(s)
        assert not (masks.sum(0) > 1).any()
        empty = scenes.background(s.place, s.style)
        assert np.array_equal(image[~masks.any(0)], empty[~masks.any(0)].astype(image.dtype))


def test_every_place_has_a_background_of_its_own():
    means = [scenes.background(place, 5).mean((0, 1)) for place in sprites.PLACES]
    assert all(np.abs(a - b).max() > 0.02 for i, a in enumerate(means) for b in means[:i])


def test_a_plain_look_is_the_clean_reference_and_a_cover_hides_its_share():
    who = scenes.random_identity(np.random.default_rng(1), "test")
    clean = scenes.reference("robot", who)
    assert np.allclose(references.show("robot", who, references.Look()), clean)
    shown = (np.abs(clean - scenes.BLANK) > 1e-6).any(-1).sum()
    half = references.show("robot", who, references.Look(covered=0.5, cover_angle=0.3))
    assert (np.abs(half - scenes.BLANK) > 1e-6).any(-1).sum() == pytest.approx(shown / 2, rel=0.15)


def test_references_of_a_subject_are_its_own_and_of_the_wanted_number():
    shown = examples.draw_references(
        np.random.default_rng(0),
        "cat",
        scenes.random_identity(np.random.default_rng(1), "train"),
        count=4,
    )
    assert shown.shape == (4, 32, 32, 3) and not np.array_equal(shown[0], shown[1])
