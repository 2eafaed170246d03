"""The order of a batch: by the worst-served subject, and where that is close by the prompt."""

from __future__ import annotations

from mmdiff_core.evaluation.picking import PromptFidelity, ranked
from mmdiff_core.evaluation.verdicts import whole_image


def images(*worst: float) -> list:
    return [whole_image((score, 0.9)) for score in worst]


def test_without_a_prompt_the_worst_served_subject_decides_then_the_mean_then_the_batch():
    batch = [*images(0.5, 0.7, 0.5), whole_image((0.5, 0.95))]
    assert ranked(batch) == (1, 3, 0, 2)


def test_images_close_to_the_best_are_ordered_by_the_prompt_and_others_are_not():
    batch = images(0.60, 0.62, 0.61, 0.40)
    assert ranked(batch, PromptFidelity((0.3, 0.1, 0.2, 0.9), within=0.02)) == (0, 2, 1, 3)
    assert ranked(batch, PromptFidelity((0.3, 0.1, 0.2, 0.9), within=0.01)) == (2, 1, 0, 3)


def test_closeness_counts_from_the_best_of_a_group_so_that_it_does_not_add_up():
    batch = images(0.60, 0.58, 0.56, 0.54)
    rising = PromptFidelity((0.1, 0.2, 0.3, 0.4), within=0.02)
    assert ranked(batch, rising) == (1, 0, 3, 2)


def test_equally_faithful_images_keep_the_order_of_their_subjects():
    batch = images(0.60, 0.61, 0.60)
    assert ranked(batch, PromptFidelity((0.2, 0.2, 0.2), within=0.5)) == ranked(batch) == (1, 0, 2)
    assert ranked([], PromptFidelity((), within=0.5)) == ()
