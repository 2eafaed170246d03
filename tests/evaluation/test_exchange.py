"""How far one subject changes where the other one is exchanged, with the shipped weights."""

from __future__ import annotations

import pytest

from mmdiff_core.small_world.trials import QUESTIONS, make_trial


@pytest.fixture(scope="module")
def task():
    from mmdiff_core.host import small_world
    from mmdiff_core.host.frozen_base.build import load_task

    return load_task(small_world.WEIGHTS / "adapter.safetensors")


def test_another_second_subject_changes_the_image_also_where_the_first_one_stands(task):
    from mmdiff_core.lab.measures import exchange

    different = next(q for q in QUESTIONS if q.name == "two different")
    changed = exchange(task, 4, different)
    assert 0 < changed["inside"] < 128 and changed["whole"] > 0


def test_the_same_second_subject_changes_nothing(task, monkeypatch):
    from mmdiff_core.lab import measures

    different = next(q for q in QUESTIONS if q.name == "two different")
    monkeypatch.setattr(measures, "_exchanged", lambda trial: trial.example)
    assert measures.exchange(task, 2, different) == {"inside": 0.0, "whole": 0.0}


def test_only_the_second_subjects_references_are_exchanged():
    from mmdiff_core.lab.measures import _exchanged

    different = next(q for q in QUESTIONS if q.name == "two different")
    trial = make_trial(different, 99, 3)
    first, second = trial.example.subjects
    same, other = _exchanged(trial).subjects
    assert same is first and other.span == second.span and other.mask is second.mask
    assert other.references.shape == second.references.shape
    assert not other.references.equal(second.references)
