"""The measurement of MM-Diff Pick Best in the small world: its counts and its table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmdiff_core.evaluation.verdicts import whole_image
from mmdiff_core.host import small_world
from mmdiff_core.host.compare import SPRITES
from mmdiff_core.host.models import Readers
from mmdiff_core.lab import picking
from mmdiff_core.small_world.trials import QUESTIONS, make_trial, true_image, unrelated

TWO = next(question for question in QUESTIONS if question.name == "two different")


def test_the_best_of_every_four_and_of_every_eight_are_counted():
    right = [[False, True, False, False, False, False, True, False]]
    judged = [[whole_image((score,)) for score in (0.1, 0.9, 0.2, 0.3, 0.95, 0.1, 0.2, 0.3)]]
    assert picking.picked(right, judged, 4) == (1, 2)
    assert picking.picked(right, judged, 8) == (0, 1)
    assert picking.picked(right, judged, 8, keep=2) == (1, 2)
    assert picking.possible(right, 4) == (2, 2)
    assert picking.possible([[False] * 8, [True] * 8], 8) == (1, 2)


@pytest.fixture(scope="module")
def mmdiff():
    base = small_world.load()
    return small_world.load_adapter(readers=Readers(base.clip_vision))


def test_where_one_of_eight_is_drawn_perfectly_it_is_picked(mmdiff):
    trial = make_trial(TWO, picking.SEED, 0)
    strangers = [unrelated(trial, number) for number in range(7)]
    dots = torch.stack([*strangers[:5], true_image(trial.scene), *strangers[5:]])
    images = (dots * 255).round().byte().numpy()[None]
    row = picking.score_sets(mmdiff, TWO, images)
    assert row.every == (1, 8) and row.picked_of_8 == row.possible_of_8 == (1, 1)
    assert row.picked_of_4 == row.possible_of_4 == (1, 2)
    assert row.subjects[0] > SPRITES.least > row.unrelated[1]


def test_images_that_are_kept_are_not_drawn_again(tmp_path):
    kept = tmp_path / "sets.npz"
    images = np.zeros((2, 8, 3, 32, 32), np.uint8)
    np.savez_compressed(kept, **{TWO.name: images})
    assert np.array_equal(picking.draw_sets(None, TWO, 2, kept), images)


def test_the_table_has_shares_with_intervals():
    row = picking.Row((90, 96), (23, 24), (24, 24), (12, 12), (12, 12), (24, 24), (1, 1), (0, 0.7))
    text = picking.table({"two different": row, "three": replace(row, every=(60, 96))})
    assert "| two different | 93.8 (87.0-97.1), n = 96 | 95.8" in text
    assert "| three | 62.5" in text and "0.00 to 0.70" in text
    heads, rule, *rows = text.splitlines()
    assert {line.count("|") for line in (heads, rule, *rows)} == {10}
