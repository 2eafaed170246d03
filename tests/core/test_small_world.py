"""The small world is drawn by rule and known exactly, and its scores tell true pictures from swapped ones."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmdiff_core.small_world import examples, references, scenes, score, sizes, sprites, trials


def dots(scene: scenes.Scene) -> torch.Tensor:
    return torch.from_numpy(scenes.draw(scene)[0]).movedim(-1, 0).float()


@pytest.mark.parametrize("kind", sprites.CLASSES)
def test_every_class_is_drawn_in_its_frame_with_every_accessory(kind):
    rng = np.random.default_rng(0)
    for accessory in sprites.ACCESSORIES:
        who = dataclasses.replace(scenes.random_identity(rng, "train"), accessory=accessory)
        colours, mask = scenes.sprite(kind, who)
        assert colours.shape == (scenes.TALL, sprites.WIDTH, 3) and mask.any() and colours.min() >= 0 and colours.max() <= 1


def test_a_number_always_gives_the_same_scene_and_another_gives_another():
    assert scenes.scene("train", 0, 7) == scenes.scene("train", 0, 7)
    assert len({scenes.scene("train", 0, i) for i in range(200)}) == 200
    assert np.array_equal(scenes.draw(scenes.scene("test", 1, 3))[0], scenes.draw(scenes.scene("test", 1, 3))[0])


def test_training_never_shows_a_held_out_individual_or_pair():
    for i in range(400):
        placed = scenes.scene("train", 0, i).placed
        assert not any(p.identity.held_out for p in placed)
        assert not {frozenset((a.kind, b.kind)) for a in placed for b in placed if a is not b} & sprites.HELD_OUT_PAIRS
    tests = [scenes.scene("test", 0, i) for i in range(400)]
    assert all(p.identity.held_out for s in tests for p in s.placed)
    assert any({frozenset((s.placed[0].kind, s.placed[-1].kind))} & sprites.HELD_OUT_PAIRS for s in tests)


def test_a_caption_names_every_subject_where_its_span_says_and_the_place():
    for i in range(50):
        s = scenes.scene("train", 2, i)
        assert [s.caption[a:b] for a, b in s.spans()] == [p.kind for p in s.placed]
        assert s.caption.endswith(sprites.PLACES[s.place])


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
    shown = examples.show_references(np.random.default_rng(0), "cat", scenes.random_identity(np.random.default_rng(1), "train"), count=4)
    assert shown.shape == (4, 3, 32, 32) and not torch.equal(shown[0], shown[1])


# ---------------------------------------------------------------- scores

def asked(count: int, number: int, kinds: str = "any") -> list[trials.Trial]:
    return [trials.make_trial(trials.Question("q", count, kinds), 1, i) for i in range(number)]


@pytest.mark.parametrize(("count", "kinds"), [(1, "any"), (2, "different"), (2, "same"), (3, "any")])
def test_true_renderings_score_at_least_99_per_cent(count, kinds):
    found = [(score.binding(dots(t.scene), t.wanted, t.strangers[:trials.STRANGERS]), t) for t in asked(count, 60, kinds)]
    assert sum(b.bound for b, _ in found) >= 0.99 * sum(b.wanted for b, _ in found)
    assert sum(b.mixed for b, _ in found) <= 0.01 * sum(b.wanted for b, _ in found)
    right = [score.right_identity(dots(t.scene), kind, who, t.strangers) for _, t in found for kind, who in t.wanted]
    assert sum(right) >= 0.99 * len(right)


def test_swapped_individuals_score_at_most_1_per_cent_and_count_as_mixed():
    bound = mixed = wanted = 0
    for t in asked(2, 60, "different"):
        a, b = t.scene.placed
        swapped = dataclasses.replace(t.scene, placed=(dataclasses.replace(a, identity=b.identity), dataclasses.replace(b, identity=a.identity)))
        found = score.binding(dots(swapped), t.wanted, t.strangers[:trials.STRANGERS])
        bound, mixed, wanted = bound + found.bound, mixed + found.mixed, wanted + found.wanted
    assert bound <= 0.01 * wanted and mixed >= 0.99 * wanted


def test_blended_individuals_do_not_count_as_bound():
    bound = wanted = 0
    for t in asked(2, 40, "same"):
        a, b = t.scene.placed
        one, other = scenes.blend(a.identity, b.identity)[:2]
        blended = dataclasses.replace(t.scene, placed=(dataclasses.replace(a, identity=one), dataclasses.replace(b, identity=other)))
        found = score.binding(dots(blended), t.wanted, t.strangers[:trials.STRANGERS])
        bound, wanted = bound + found.bound, wanted + found.wanted
    assert bound <= 0.01 * wanted


def test_one_individual_drawn_twice_is_one_bound_subject_not_two():
    for t in asked(2, 20, "same"):
        a, b = t.scene.placed
        twice = dataclasses.replace(t.scene, placed=(a, dataclasses.replace(b, identity=a.identity)))
        assert score.binding(dots(twice), t.wanted, t.strangers[:trials.STRANGERS]).bound == 1


def test_look_alikes_are_told_apart_in_true_renderings():
    question = trials.Question("two look-alikes", 2, "same", look_alike=True)
    found = [score.binding(dots(t.scene), t.wanted, t.strangers[:4]) for t in (trials.make_trial(question, 1, i) for i in range(60))]
    assert sum(b.bound for b in found) >= 0.99 * sum(b.wanted for b in found)


def test_an_interval_holds_the_share_and_narrows_with_the_number():
    p, low, high = score.interval(90, 100)
    assert p == 0.9 and low == pytest.approx(0.8256, abs=1e-3) and high == pytest.approx(0.9448, abs=1e-3)
    assert score.interval(900, 1000)[1] > low
    assert score.interval(0, 10)[1] == 0 and score.interval(10, 10)[2] == pytest.approx(1)


def test_the_held_places_of_a_trial_are_boxes_around_its_subjects():
    t = trials.make_trial(trials.Question("held", 2, held=True), 1, 0)
    for subject in t.example.subjects:
        mask = subject.mask[::sizes.DOT, ::sizes.DOT]
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns and rows <= scenes.TALL and columns <= sprites.WIDTH


def test_adapters_are_named_by_their_file_or_their_runs_folder_and_two_of_a_name_are_refused(tmp_path):
    from mmdiff_core.host.evaluate import named
    for name in ("full/adapter.safetensors", "other/full.safetensors", "none/adapter.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(named([tmp_path / "full/adapter.safetensors", tmp_path / "none/adapter.safetensors"])) == ["full", "none"]
    with pytest.raises(ValueError, match="would both be 'full'"):
        named([tmp_path / "full/adapter.safetensors", tmp_path / "other/full.safetensors"])
    with pytest.raises(ValueError, match="is not there"):
        named([tmp_path / "missing.safetensors"])


def test_a_question_that_does_not_exist_is_answered_with_those_that_do():
    from mmdiff_core.host.evaluate import asked
    assert [q.name for q in asked(["three", "one"], False)] == ["three", "one"]
    assert len(asked([], True)) == len(trials.QUESTIONS) + len(trials.MORE_QUESTIONS)
    with pytest.raises(ValueError, match="no question 'four'.*two different"):
        asked(["four"], False)


def test_results_of_several_files_become_one_table_with_shares_and_intervals(tmp_path):
    import json

    from mmdiff_core.host.evaluate import merged, table
    counts = vars(trials.Tally(100, 200, 150, 100, 50, 10, 90, 100))
    (tmp_path / "a.json").write_text(json.dumps({"full": {"one": counts}}))
    measured = {"inside": {"text_inside": 0.5, "image_inside": 0.75}, "gain": {"0.3": 0.1, "0.6": 0.2, "0.8": 0.3, "0.95": 0.4}}
    (tmp_path / "b.json").write_text(json.dumps({"full": {"three": counts, **measured}}))
    text = table(merged([tmp_path / "a.json", tmp_path / "b.json"]))
    assert "| full | one | 75.0 (69-80) | 50.0 (43-57) | 50.0 (40-60) | 5.0 (3-9) |" in text
    assert "| full | three |" in text and "| full | 0.500 | 0.750 | 10.0 % | 20.0 % | 30.0 % | 40.0 % |" in text


def test_a_fine_tuned_base_is_counted_on_its_own_individual_and_stands_in_the_same_table():
    from mmdiff_core.host.evaluate import table
    from mmdiff_core.host.finetune import as_scene, trials_of
    first, *others = trials_of(3, 3, 2)
    assert {(p.kind, p.identity) for t in others for p in t.scene.placed} == set(first.wanted) and all(not t.example.subjects for t in others)
    assert len({t.scene.style for t in (first, *others)}) == 3
    reference = torch.full((3, 32, 32), 0.75)
    reference[:, 10:20, 10:20] = 1.0
    assert as_scene(reference, np.random.default_rng(0)).gt(0.9).sum() == 3 * 25       # half as large, the rest its blank ground
    text = table({"fine-tuned": {"one": vars(trials.Tally(10, 10, 9, 8, 8, 0, 7, 10)), "cost": {"steps": 200}}})
    assert "| fine-tuned | one | 90.0 (" in text and "cost" not in text


def test_unseen_pairs_are_those_that_no_training_picture_shows():
    question = next(q for q in trials.MORE_QUESTIONS if q.kinds == "unseen")
    pairs = [frozenset(p.kind for p in trials.make_trial(question, 0, i).scene.placed) for i in range(40)]
    assert set(pairs) == sprites.HELD_OUT_PAIRS
