"""The small world's scores tell true renderings from swapped ones."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import Counter

import pytest
import torch

from mmdiff_core.small_world import (
    scenes,
    score,
    sizes,
    sprites,
    trials,
)

from support.remembered import remembered


def dots(scene: scenes.Scene) -> torch.Tensor:
    return torch.from_numpy(scenes.draw(scene)[0]).movedim(-1, 0).float()


def asked(count: int, number: int, kinds: str = "any") -> list[trials.Trial]:
    question = trials.Question("q", count, kinds)
    return [trials.make_trial(question, 1, i) for i in range(number)]


def verdicts(pairs: list[tuple[trials.Trial, scenes.Scene]]) -> Counter:
    """How often each verdict was given to the images of those scenes."""
    counts: Counter = Counter()
    for trial, scene in pairs:
        strangers = trial.strangers[: trials.STRANGERS]
        counts.update(score.binding(dots(scene), trial.wanted, strangers).verdicts)
    return counts


def with_identities(trial: trials.Trial, *identities: scenes.Identity) -> scenes.Scene:
    """The trial's scene with other individuals at the same positions."""
    placed = [
        dataclasses.replace(p, identity=who)
        for p, who in zip(trial.scene.placed, identities, strict=True)
    ]
    return dataclasses.replace(trial.scene, placed=tuple(placed))


ASKED = [(1, "any"), (2, "different"), (2, "same"), (2, "unseen"), (3, "any")]


@pytest.mark.parametrize(("count", "kinds"), ASKED)
def test_true_renderings_are_their_own_in_at_least_99_per_cent(count, kinds):
    given = asked(count, 60, kinds)
    counts = verdicts([(t, t.scene) for t in given])
    assert counts["own"] >= 0.99 * counts.total()
    right = [
        score.right_identity(dots(t.scene), kind, who, t.strangers[:7])
        for t in given
        for kind, who in t.wanted
    ]
    assert sum(right) >= 0.99 * len(right)


def test_swapped_individuals_of_two_classes_are_swaps():
    given = asked(2, 60, "different")
    swapped = []
    for t in given:
        others = [p.identity for p in reversed(t.scene.placed)]
        swapped.append((t, with_identities(t, *others)))
    counts = verdicts(swapped)
    assert counts["swap"] >= 0.99 * counts.total()


def test_blended_individuals_are_mixtures_unless_the_blend_cannot_be_seen():
    pairs = []
    for t in asked(2, 60, "same"):
        (kind, a), (_, b) = t.wanted
        one, other, *_ = scenes.blend(a, b)
        if all(score.visibly_different(kind, m, own) for m in (one, other) for own in (a, b)):
            pairs.append((t, with_identities(t, one, other)))
    counts = verdicts(pairs)
    assert len(pairs) >= 40 and counts["mixture"] >= 0.97 * counts.total()


def test_one_individual_drawn_twice_is_one_own_subject_and_one_duplicate():
    for t in asked(2, 20, "same"):
        first = t.scene.placed[0].identity
        twice = score.binding(dots(with_identities(t, first, first)), t.wanted, t.strangers[:32])
        assert sorted(twice.verdicts) == ["duplicate", "own"] and not twice.complete


def test_strangers_are_strangers_and_an_empty_place_is_missing():
    given = asked(2, 40, "different")
    strange = [with_identities(t, *t.strangers[:2]) for t in given]
    counts = verdicts(list(zip(given, strange, strict=True)))
    assert counts["stranger"] >= 0.97 * counts.total()
    empty = [(t, dataclasses.replace(t.scene, placed=())) for t in given]
    counts = verdicts(empty)
    assert counts["missing"] >= 0.75 * counts.total() and counts["own"] == 0


@pytest.mark.parametrize("kinds", ["different", "same"])
def test_unrelated_individuals_are_rarely_taken_for_the_wanted_ones_or_their_mixtures(kinds):
    given = asked(2, 60, kinds)
    counts: Counter = Counter()
    for number, trial in enumerate(given):
        image = trials.unrelated(trial, number)
        counts.update(score.binding(image, trial.wanted, trial.strangers[:32]).verdicts)
    assert counts["own"] <= 0.1 * counts.total() and counts["mixture"] <= 0.15 * counts.total()


def test_look_alikes_are_told_apart_in_true_renderings():
    question = trials.Question("two look-alikes", 2, "same", look_alike=True)
    given = [trials.make_trial(question, 1, i) for i in range(60)]
    counts = verdicts([(t, t.scene) for t in given])
    assert counts["own"] >= 0.99 * counts.total()


def test_candidates_that_cannot_be_seen_apart_from_a_wanted_one_are_left_out():
    for t in asked(2, 20, "same"):
        candidates = score.binding_candidates(t.wanted, t.strangers[:32])
        for kind, who in candidates:
            for wanted_kind, wanted in t.wanted:
                same = (kind, who) == (wanted_kind, wanted)
                assert (
                    same
                    or who in [w for _, w in t.wanted]
                    or score.visibly_different(kind, who, wanted)
                )


def test_the_reader_reads_true_renderings_of_every_question_right_in_99_per_cent():
    from mmdiff_core.lab.answers import load_reader

    reader = load_reader()
    for question in (*trials.QUESTIONS, trials.Question("unseen", 2, "unseen")):
        given = [trials.make_trial(question, 7, i) for i in range(200)]
        read = reader.read(torch.stack([trials.true_image(t.scene) for t in given]))
        right = [r == score.truth(t.scene) for r, t in zip(read, given, strict=True)]
        assert sum(right) >= 0.99 * len(right), question.name


def test_the_image_encoder_sees_true_individuals_among_64_and_does_not_see_strangers():
    from mmdiff_core.lab.answers import load_embed

    ruler = score.EncoderRuler(remembered(load_embed()))
    own, strange = [], []
    for number, t in enumerate(asked(2, 20, "different")):
        own += ruler.sees(trials.true_image(t.scene), t.wanted, t.strangers)
        strange += ruler.sees(trials.unrelated(t, number), t.wanted, t.strangers)
    assert sum(own) >= 0.97 * len(own) and sum(strange) <= 0.1 * len(strange)


def test_background_noise_is_nothing_for_flat_colours_and_grows_with_their_distance():
    scene = dataclasses.replace(scenes.scene("test", 1, 3), placed=())
    clear = torch.ones(scenes.SIDE, scenes.SIDE, dtype=torch.bool)
    flat = trials.true_image(scene)
    assert score.background_noise(flat, scene, clear) == pytest.approx(0, abs=1e-4)
    shifted = score.background_noise((flat + 2 / 255).clamp(0, 1), scene, clear)
    assert 0.5 < shifted <= 2.01


def test_subjects_stand_on_the_latents_grid():
    for i in range(100):
        for p in scenes.scene("train", 3, i).placed:
            assert p.x % scenes.GRID == 0 and p.y in scenes.FEET
            assert 0 <= p.x <= scenes.SIDE - sprites.WIDTH


def test_an_interval_holds_the_share_and_narrows_with_the_number():
    p, low, high = score.interval(90, 100)
    assert (
        p == 0.9
        and low == pytest.approx(0.8256, abs=1e-3)
        and high == pytest.approx(0.9448, abs=1e-3)
    )
    assert score.interval(900, 1000)[1] > low
    assert score.interval(0, 10)[1] == 0 and score.interval(10, 10)[2] == pytest.approx(1)


def test_the_held_places_of_a_trial_are_boxes_around_its_subjects():
    t = trials.make_trial(trials.Question("held", 2, held=trials.HELD), 1, 0)
    for subject in t.example.subjects:
        mask = subject.mask[:: sizes.DOT, :: sizes.DOT]
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns and rows <= scenes.TALL and columns <= sprites.WIDTH


def test_adapters_are_named_by_their_file_or_their_runs_folder_and_two_of_a_name_are_refused(
    tmp_path,
):
    from mmdiff_core.lab.evaluate import named

    for name in ("full/adapter.safetensors", "other/full.safetensors", "none/adapter.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(
        named([tmp_path / "full/adapter.safetensors", tmp_path / "none/adapter.safetensors"])
    ) == ["full", "none"]
    with pytest.raises(ValueError, match="would both be 'full'"):
        named([tmp_path / "full/adapter.safetensors", tmp_path / "other/full.safetensors"])
    with pytest.raises(ValueError, match="is not there"):
        named([tmp_path / "missing.safetensors"])


def test_a_question_that_does_not_exist_is_answered_with_those_that_do():
    from mmdiff_core.lab.evaluate import asked

    assert [q.name for q in asked(["three", "one"], False)] == ["three", "one"]
    assert len(asked([], True)) == len(trials.QUESTIONS) + len(trials.MORE_QUESTIONS)
    with pytest.raises(ValueError, match="no question 'four'.*two different"):
        asked(["four"], False)


def tally(**counts: int) -> dict:
    return vars(trials.Tally(pictures=100, subjects=200, **counts))


def test_results_of_several_files_become_one_table_with_shares_and_intervals(tmp_path):
    import json

    from mmdiff_core.lab.tables import merged, table

    counts = tally(identity=150, own=100, complete=40, mixture=50, background=100, noise=250.0)
    levels = {"0.3": 0.1, "0.6": 0.2, "0.8": 0.3, "0.95": 0.4}
    measured = {
        "inside": {"text_inside": 0.5, "image_inside": 0.75},
        "gain": levels,
        "leakage": {"two of a class": {"inside": 3.25, "whole": 1.0}},
    }
    (tmp_path / "a.json").write_text(json.dumps({"full": {"one": counts}}))
    (tmp_path / "b.json").write_text(json.dumps({"full": {"three": counts, **measured}}))
    text = table(merged([tmp_path / "a.json", tmp_path / "b.json"]))
    assert "| full | one | 100 | 75.0 (69-80) | 50.0 (43-57) | 40.0 (31-50) |" in text
    assert "100.0 (96-100) | 2.5 |" in text and "| full | three |" in text
    assert "| full | 0.500 | 0.750 | 10.0 % | 20.0 % | 30.0 % | 40.0 % |" in text
    assert "| full | two of a class | 3.2 | 1.0 |" in text


def test_the_second_rulers_shares_are_of_the_images_that_it_saw_and_empty_where_it_saw_none():
    from mmdiff_core.lab.tables import row

    half = trials.Tally(pictures=100, subjects=200, seen=30, seen_all=10, looked=40, looked_at=20)
    assert half.shares()["seen"][0] == 0.75 and half.shares()["seen_all"][0] == 0.5
    assert row("a", "one", half).split(" | ")[6] == "50.0 (30-70)"
    none = trials.Tally(pictures=100, subjects=200)
    assert row("a", "one", none).split(" | ")[6] == ""


def test_a_fine_tuned_base_is_counted_on_its_own_individual_and_stands_in_the_same_table():
    from mmdiff_core.lab.finetune import trials_of
    from mmdiff_core.lab.tables import table

    first, *others = trials_of(3, 3, 2)
    shown = {(p.kind, p.identity) for t in others for p in t.scene.placed}
    assert shown == set(first.wanted)
    assert all(not t.example.subjects for t in others)
    assert len({t.scene.style for t in (first, *others)}) == 3
    text = table({"fine-tuned": {"one": tally(identity=180), "cost": {"steps": 200}}})
    assert "| fine-tuned | one | 100 | 90.0 (" in text and "cost" not in text


def test_a_base_is_gone_when_nothing_holds_its_task():
    from mmdiff_core.host.frozen_base.build import load_task
    from mmdiff_core.small_world.examples import SmallWorldExamples

    task = load_task(None)
    task(SmallWorldExamples(subject_dropout=1.0).batch(0, 2))
    base = weakref.ref(task.bridge.unet)
    del task
    gc.collect()
    assert base() is None


def test_a_clean_reference_set_in_a_scene_is_the_scene_with_its_individual():
    from mmdiff_core.lab.finetune import set_in_scene

    for number in range(20):
        scene = scenes.scene("test", 5, number, 1)
        (placed,) = scene.placed
        reference = torch.from_numpy(scenes.reference(placed.kind, placed.identity)).movedim(-1, 0)
        cat = dataclasses.replace(placed, kind="cat")
        another = dataclasses.replace(scene, placed=(cat,))
        shown, caption = set_in_scene(placed.kind, reference, another)
        assert caption == scene.caption
        torch.testing.assert_close(shown, dots(scene), atol=1e-6, rtol=0)


def test_unseen_pairs_are_those_that_no_training_picture_shows():
    question = next(q for q in trials.MORE_QUESTIONS if q.kinds == "unseen")
    pairs = set()
    for i in range(40):
        placed = trials.make_trial(question, 0, i).scene.placed
        pairs.add(frozenset(p.kind for p in placed))
    assert pairs == sprites.HELD_OUT_PAIRS
