"""What is said of who is where, on faces whose scores are made up, and the order of images."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from mmdiff_core.evaluation.picking import ranked
from mmdiff_core.evaluation.verdicts import Found, ImageLikeness, Scale, judge, whole_image

NAMES = ("Alan", "Ben", "Carl")
FACES = Scale("cosine", "below 0.2", least=0.25)
THINGS = Scale("cosine", "unknown", "thing", "things", apart=0.02)


def seen(scores: Sequence[Sequence[float]], owners: Sequence[int | None] = ()) -> Found:
    """Faces with these scores [S F], beside one another."""
    table = torch.tensor(scores, dtype=torch.float32)
    boxes = tuple((100.0 * f, 0.0, 100.0 * f + 80, 80.0) for f in range(table.shape[1]))
    return Found(table, boxes, tuple(owners) or (None,) * len(boxes))


def said(found: Found, scale: Scale = FACES) -> list[str]:
    return list(judge(found, NAMES[: len(found.scores)], scale).verdicts)


def test_everyone_in_place_is_nothing_to_say_and_each_gets_the_own_box():
    likeness = judge(seen([[0.05, 0.6], [0.5, 0.1]]), NAMES[:2], FACES)
    assert likeness.verdicts == () and likeness.others == ()
    assert likeness.scores == pytest.approx((0.6, 0.5))
    assert [box[0] for box in likeness.boxes] == [100.0, 0.0]


@pytest.mark.parametrize(
    "scores, words",
    [
        ([[], []], ["Alan is missing", "Ben is missing"]),
        ([[0.6], [0.1]], ["Ben is missing"]),
        ([[0.6, 0.1], [0.1, 0.1]], ["Ben is missing"]),
        ([[0.6, 0.5], [0.1, 0.1]], ["Ben is missing", "Alan is drawn twice"]),
        ([[0.6, 0.5, 0.4], [0.1, 0.1, 0.2]], ["Ben is missing", "Alan is drawn 3 times"]),
        ([[0.6, 0.1, 0.1], [0.1, 0.5, 0.2]], ["an extra person"]),
        ([[0.6, 0.1, 0.1, 0], [0.1, 0.5, 0.2, 0]], ["2 extra people"]),
        ([[0.6, 0.1, 0.5], [0.1, 0.5, 0.2]], ["Alan is drawn twice"]),
        ([[0.6, 0.1, 0.1], [0.1, 0.1, 0.1]], ["Ben is missing", "an extra person"]),
    ],
)
def test_who_is_missing_doubled_or_one_too_many_is_said(scores, words):
    assert said(seen(scores)) == words


def test_two_people_in_one_anothers_regions_are_swapped():
    scores = [[0.1, 0.6], [0.5, 0.1]]
    assert said(seen(scores, (0, 1))) == ["Alan and Ben are swapped"]
    assert said(seen(scores, (1, 0))) == []
    assert said(seen(scores)) == []


def test_three_that_went_round_are_told_one_by_one():
    scores = [[0.0, 0.6, 0.0], [0.0, 0.0, 0.6], [0.6, 0.0, 0.0]]
    assert said(seen(scores, (0, 1, 2))) == [
        "Alan is in the region of Ben",
        "Ben is in the region of Carl",
        "Carl is in the region of Alan",
    ]


def test_one_who_is_missing_is_in_nobodys_region():
    assert said(seen([[0.1, 0.6], [0.1, 0.1]], (0, 1))) == [
        "Alan is in the region of Ben",
        "Ben is missing",
    ]


def test_things_are_swapped_only_where_the_other_order_is_clearly_better():
    assert said(seen([[0.70, 0.90], [0.90, 0.70]], (0, 1)), THINGS) == ["Alan and Ben are swapped"]
    near = judge(seen([[0.800, 0.805], [0.805, 0.800]], (0, 1)), NAMES[:2], THINGS)
    assert near.verdicts == () and near.scores == pytest.approx((0.8, 0.8))


def test_where_numbers_alone_do_not_tell_nothing_is_missing_or_doubled():
    assert said(seen([[0.1, 0.0], [0.0, 0.1]], (0, 1)), THINGS) == []


def test_a_subject_without_a_match_scores_nothing_and_has_no_box():
    likeness = judge(seen([[0.6], [0.1]]), NAMES[:2], FACES)
    assert likeness.scores == pytest.approx((0.6, 0.0)) and likeness.boxes[1] is None
    assert likeness.worst == 0.0 and likeness.mean == pytest.approx(0.3)


def test_images_are_ordered_by_the_worst_served_subject_then_by_the_mean_then_as_they_come():
    images = [
        whole_image(scores)
        for scores in ((0.9, 0.1), (0.4, 0.4), (0.4, 0.9), (0.4, 0.9), (0.5, 0.5))
    ]
    assert ranked(images) == (4, 2, 3, 1, 0)
    assert ranked([]) == ()
    assert ranked([ImageLikeness((0.3,), (None,))]) == (0,)
