"""The experiments in the small world: what is asked, how it is scored, and going on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmdiff_core.evaluation.experiments import (
    BASE,
    EACH,
    EXPERIMENTS,
    FRAMES,
    NOISE_WALK,
    OWN_NOISE,
    PROMPT_WALK,
    Cell,
)
from mmdiff_core.lab import costs, drawers, experiments, frames
from mmdiff_core.lab.answers import load_embed, noise_for
from mmdiff_core.small_world import references, scenes
from mmdiff_core.small_world.trials import MORE_QUESTIONS, QUESTIONS, make_trial, true_image

# of the questions as they were before there were experiments: their counts are published
KNOWN = "934585a744dedaea20787f72b12bff45409a4be82150a7c8f366b600936f2aeb"


def facts(trial) -> str:
    """What a trial asks, and where its generator stands after its references."""
    placed = []
    for p in trial.scene.placed:
        who = p.identity
        hues = (round(who.first, 6), round(who.second, 6))
        placed.append((p.kind, p.x, p.y, *hues, who.pattern, who.eyes, who.accessory))
    last, scene, means = trial.strangers[-1], trial.scene, []
    for subject in trial.example.subjects:
        means.append([round(float(v), 2) for v in subject.references.mean((1, 2, 3))])
    told = (placed, scene.place, scene.style, scene.caption, round(last.first, 6), last.pattern)
    return repr((*told, means))


def test_the_questions_whose_counts_are_published_ask_what_they_always_asked():
    digest = hashlib.sha256()
    for question in (*QUESTIONS, *MORE_QUESTIONS):
        if "self" in question.held:
            continue  # came later, with the trials of those held without it
        for number in (0, 1, 7, 300):
            digest.update(facts(make_trial(question, 99, number)).encode())
    assert digest.hexdigest() == KNOWN


def asked(name: str, cell: str, count: int = 8, out: Path = Path()):
    experiment = EXPERIMENTS[name]
    chosen = next(c for c in experiment.cells if c.name == cell)
    return experiments.asked_of(experiment, chosen, count, out)


# ---------------------------------------------------------------- references


@pytest.fixture(scope="module")
def individual():
    placed = scenes.scene("test", 3, 4, 1).placed[0]
    return placed.kind, placed.identity


def test_the_plain_look_is_the_clean_reference(individual):
    shown = references.show(*individual, references.Look())
    assert np.abs(shown - scenes.reference(*individual)).max() < 1e-6


def test_each_look_changes_what_its_name_says(individual):
    clean = references.show(*individual, references.Look())
    looks = {name: references.show(*individual, look) for name, look in references.LOOKS.items()}
    assert np.abs(looks["mirrored"] - clean[:, ::-1]).max() < 1e-6
    assert looks["dark"] == pytest.approx(0.35 * clean, abs=1e-5)
    seen = [
        (np.abs(image - scenes.BLANK).max(-1) > 0.02).sum()
        for image in (clean, looks["half covered"])
    ]
    assert 0.4 < seen[1] / seen[0] < 0.6
    edges = [np.abs(np.diff(image, axis=1)).max() for image in (clean, looks["blurred"])]
    assert edges[1] < 0.5 * edges[0]
    assert looks["blurred"].mean() == pytest.approx(clean.mean(), abs=0.01)
    assert np.abs(looks["other pose"] - clean).mean() > 0.05


def test_a_blur_keeps_a_plain_image_and_spreads_a_dot_around_itself():
    plain = np.full((9, 9, 3), 0.3, np.float32)
    assert references.blur(plain, 1.5) == pytest.approx(plain)
    dot = np.zeros((21, 21, 3), np.float32)
    dot[10, 10] = 1
    blurred = references.blur(dot, 1.5)
    assert blurred.sum() == pytest.approx(3, rel=1e-5)
    assert blurred[10, 10, 0] == pytest.approx(1 / (2 * np.pi * 1.5**2), rel=0.02)
    assert np.abs(blurred - blurred[::-1, ::-1]).max() < 1e-6


@pytest.mark.parametrize("shown", references.LOOKS)
def test_a_worse_reference_is_of_the_same_individual_in_the_same_scene(shown):
    changed = 0
    for clean, worse in zip(asked("conditions", "clean"), asked("conditions", shown), strict=True):
        assert clean.trial.scene == worse.trial.scene
        assert clean.trial.strangers == worse.trial.strangers
        (own,), (other,) = clean.trial.example.subjects, worse.trial.example.subjects
        changed += not torch.equal(own.references, other.references)
    assert changed == 8 or (shown == "mirrored" and changed), "some individuals are symmetric"


# ---------------------------------------------------------------- what is asked


def test_backgrounds_are_plain_or_busy_and_nothing_else_changes_with_regions():
    for place in ("plain", "busy"):
        free = asked("subjects", f"two, free, {place}")
        held = asked("subjects", f"two, regions, {place}")
        for one, other in zip(free, held, strict=True):
            assert one.trial.scene == other.trial.scene
            assert one.trial.scene.place in experiments.PLACES[place]
            assert f" {one.trial.scene.caption.split()[-1]}" in one.trial.example.caption


def test_more_references_are_of_the_same_individual_and_the_first_stays():
    few, many = asked("references", "1 reference"), asked("references", "5 references")
    for one, other in zip(few, many, strict=True):
        a, b = (each.trial.example.subjects[0].references for each in (one, other))
        assert one.trial.scene == other.trial.scene and b.shape[0] == 5
        assert torch.equal(a[0], b[0])


def test_by_subject_every_row_has_the_same_scenes_of_the_same_individual():
    rows = [asked("tuning", cell.name, 2 * EACH) for cell in EXPERIMENTS["tuning"].cells]
    for first, *others in zip(*rows, strict=True):
        assert all(other.trial.scene == first.trial.scene for other in others)
        (start, end), (noun, _) = first.trial.example.spans[0], first.trial.wanted[0]
        assert first.trial.example.caption[start:end] == noun
    assert len({each.trial.wanted[0] for each in rows[0]}) == 2


# ---------------------------------------------------------------- frames


@pytest.fixture(scope="module")
def one():
    return asked("temporal", NOISE_WALK)[0].trial


def test_a_noise_walk_begins_at_the_trials_noise_and_stays_unit_noise(one):
    walk = frames.noise_of_frames(Cell("", frames=NOISE_WALK), one.example, FRAMES)
    assert torch.allclose(walk[:1], noise_for([one.example]))
    assert walk.flatten(1).std(1) == pytest.approx(np.ones(FRAMES), abs=0.05)
    steps = torch.cosine_similarity(walk[:-1].flatten(1), walk[1:].flatten(1))
    assert steps.min() > 0.95
    assert torch.cosine_similarity(walk[0].flatten(), walk[-1].flatten(), 0).abs() < 0.1


def test_own_noise_is_another_in_every_frame_and_a_prompt_walk_has_one(one):
    own = frames.noise_of_frames(Cell("", frames=OWN_NOISE), one.example, FRAMES)
    between = torch.cosine_similarity(own[:-1].flatten(1), own[1:].flatten(1))
    assert between.abs().max() < 0.1
    still = frames.noise_of_frames(Cell("", frames=PROMPT_WALK), one.example, FRAMES)
    assert torch.equal(still, noise_for([one.example]).expand(FRAMES, -1, -1, -1))
    assert frames.another_place(one) != one.scene.caption


def test_frames_of_one_individual_are_alike_wherever_it_stands_and_strangers_are_not(one):
    placed, embed = one.scene.placed[0], load_embed()
    same, strange = [], []
    for x, who in zip((0, 10, 20), one.strangers[40:], strict=False):
        moved = replace(placed, x=x)
        same.append(true_image(replace(one.scene, placed=(moved,))))
        strange.append(true_image(replace(one.scene, placed=(replace(moved, identity=who),))))
    assert min(frames.likeness_between(one, same, embed)) > 0.9
    assert max(frames.likeness_between(one, strange, embed)) < 0.9


# ---------------------------------------------------------------- drawing and scoring


class Fakes:
    """Models that render what was asked for; the base and the fine-tuned one another trial's."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.drawn = 0
        self.tuned: list[int] = []
        bridge = SimpleNamespace(close=lambda: None)
        patch.setattr(drawers, "load_task", lambda path: SimpleNamespace(bridge=bridge, path=path))
        patch.setattr(drawers, "draw", self.draw)
        patch.setattr(drawers, "fine_tune", lambda *given: self.tuned.append(given[-1]))
        patch.setattr(frames, "load_host", lambda path: None)
        patch.setattr(frames, "draw_frames", lambda task, cell, trial, n: self.frames(trial, n))
        patch.setattr(frames, "draw_by_host", lambda world, cell, trial, n: self.frames(trial, n))
        self.known: dict[str, torch.Tensor] = {}

    def draw(self, task, examples, held=()):
        self.drawn += len(examples)
        made = []
        for example in examples:
            made.append(self.known.get(example.caption, torch.zeros(3, 32, 32)))
        return torch.stack(made)

    def frames(self, trial, count):
        self.drawn += count
        return true_image(trial.scene).expand(count, -1, -1, -1)


class OneRuler:
    """Stands in for the rulers, which take their time: an image is right if it is the rendering."""

    embed = staticmethod(lambda images: images.flatten(1))

    def values(self, trial, image):
        right = float((image - true_image(trial.scene)).abs().max() < 0.01)
        return dict.fromkeys(("likeness", "prompt", "exact", "complete"), right), ()


@pytest.fixture
def fakes(monkeypatch) -> Fakes:
    monkeypatch.setattr(experiments, "LOOKED_AT", 8)
    return Fakes(monkeypatch)


@pytest.fixture
def quick(fakes, monkeypatch) -> Fakes:
    """The same with a ruler that is quick."""
    monkeypatch.setattr(experiments.Rulers, "load", lambda second: OneRuler())
    return fakes


def run(name: str, out, count: int = 8, say=lambda text: None):
    return experiments.run_experiment(EXPERIMENTS[name], out, count, None, "a command", say)


def test_every_row_has_every_image_scored_with_its_cost_and_is_not_drawn_again(fakes, tmp_path):
    for each in asked("alike", "two of a class"):
        fakes.known[each.trial.example.caption] = true_image(each.trial.scene)
    first = run("alike", tmp_path)
    rows, drawn = len(EXPERIMENTS["alike"].cells), fakes.drawn
    assert drawn == rows * 8 + 2, "and two images that warm the models up"
    again = run("alike", tmp_path)
    assert again == first and fakes.drawn == drawn
    by_name = {row.name: row for row in first.rows}
    assert by_name["two of a class"].summary("exact").mean > 0.7
    for row in first.rows:
        assert row.expected == len(row.images) == 8
        assert all(image.values["seconds"] >= 0 for image in row.images)
    assert first.bounds["exact"].floor.mean < first.bounds["exact"].oracle.mean
    assert any("two alike less two of a class" in note for note in first.notes)


def test_an_image_that_is_gone_is_drawn_again_with_its_batch(quick, tmp_path):
    run("alike", tmp_path)
    drawn = quick.drawn
    (tmp_path / "two_alike" / "images" / "3" / "0.png").unlink()
    run("alike", tmp_path)
    assert quick.drawn == drawn + 8 + 2, "and two images that warm the models up"


def test_a_folder_that_another_adapter_drew_is_refused(quick, tmp_path):
    run("alike", tmp_path / "out")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="other settings"):
        experiments.run_experiment(EXPERIMENTS["alike"], tmp_path / "out", 8, other, "", print)


def test_frames_are_compared_with_the_next_and_the_worst_is_told_once_a_batch(quick, tmp_path):
    results = run("temporal", tmp_path, 2 * FRAMES)
    for row in results.rows:
        assert len(row.images) == 2 * FRAMES and row.summary("next").units == 2
        values = [image.values for image in row.images]
        assert sum("worst" in each for each in values) == 2
        assert sum("next" in each for each in values) == 2 * (FRAMES - 1)
        assert row.summary("worst").mean == pytest.approx(1, abs=1e-5)
    assert "prompt" not in {column.name for column in results.columns}


def test_the_base_is_fine_tuned_once_for_each_individual(quick, tmp_path):
    results = run("tuning", tmp_path, 2 * EACH)
    assert quick.tuned == [0, 1, 0, 1], "with one reference, and with five"
    run("tuning", tmp_path, 2 * EACH)
    assert quick.tuned == [0, 1, 0, 1], "all its images are there"
    tuned = ["fine-tuned, 1 reference", "fine-tuned, 5 references"]
    once = {row.name: row.summary("once") for row in results.rows}
    assert [name for name, found in once.items() if found] == tuned
    assert {row.summary("exact").units for row in results.rows} == {2}


def test_a_rows_settings_are_kept_beside_its_images(quick, tmp_path):
    run("constraints", tmp_path)
    told = json.loads((tmp_path / "two_tokens" / "manifest.json").read_text())
    assert told["settings"]["held"] == "tokens" and told["settings"]["drawn_by"] == "MM-Diff"
    assert BASE not in str(told["settings"].values())


# ---------------------------------------------------------------- costs


def test_the_peak_is_that_of_the_part_that_was_measured():
    with costs.Meter() as large:
        torch.ones(60_000_000).add_(1)
    with costs.Meter() as small:
        pass
    if large.memory is None:
        assert not costs.CLEAR.exists() or small.memory is None
    else:
        assert large.memory - small.memory > 0.15
    assert large.seconds > small.seconds >= 0


def test_where_the_system_tells_no_peak_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "CLEAR", tmp_path)
    with costs.Meter() as meter:
        pass
    assert meter.memory is None
