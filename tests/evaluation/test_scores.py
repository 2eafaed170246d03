"""Each score against its definition computed another way, and the numbers of the original code."""

from __future__ import annotations

from itertools import permutations
from math import acos

import numpy as np
import pytest
from scipy.spatial.distance import cdist, cosine
from scipy.stats import bootstrap as scipy_bootstrap

from mmdiff_core.evaluation import scores
from mmdiff_core.evaluation.intervals import bootstrap, by_subject

RNG_WIDTH = 16

# FastComposer's `greedy_matching` (single_object_evaluation.py), run on these tables
FASTCOMPOSER = [
    ([[0.9, 0.8], [0.8, 0.1]], 0.1),
    ([[0.56, 0.12, -0.15], [-0.18, 0.78, 0.9], [0.53, 0.68, 0.45]], 0.56),
    ([[0.92, 0.78, -0.2], [0.83, -0.16, 0.68], [0.01, 0.84, 0.45]], 0.68),
    ([[0.98, 0.62, 0.58], [0.63, 0.27, -0.04], [0.67, 0.43, 0.17]], -0.04),
]


def rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, RNG_WIDTH))


def slow_cosine(a, b) -> float:
    return 1 - cosine(a, b)


def test_clip_i_and_dino_of_dreambench_are_the_mean_over_all_generated_and_all_real_images():
    generated, real = rows(0, 4), rows(1, 5)
    slow = [slow_cosine(a, b) for a in generated for b in real]
    assert scores.all_pairs(generated, real) == pytest.approx(np.mean(slow), abs=1e-9)
    library = 1 - cdist(generated, real, "cosine")
    assert scores.all_pairs(generated, real) == pytest.approx(library.mean(), abs=1e-9)


def test_the_oracle_leaves_out_each_image_with_itself():
    real = rows(2, 4)
    slow = [slow_cosine(real[a], real[b]) for a, b in permutations(range(4), 2)]
    assert scores.pairs_among(real) == pytest.approx(np.mean(slow), abs=1e-9)
    assert scores.pairs_among(real[:1]) is None


def test_clip_t_compares_each_image_with_its_own_prompt():
    texts, images = rows(3, 5), rows(4, 5)
    slow = np.mean([slow_cosine(a, b) for a, b in zip(texts, images, strict=True)])
    assert scores.paired(texts, images) == pytest.approx(slow, abs=1e-9)
    assert scores.dreambench_plus(texts, images) == pytest.approx(100 * slow, abs=1e-7)
    with pytest.raises(ValueError, match="no pairs"):
        scores.paired(texts, images[:3])


def test_identity_of_one_person_is_the_first_face_cut_at_zero_and_zero_without_a_face():
    faces, reference = rows(5, 3), rows(6, 1)[0]
    expected = max(slow_cosine(faces[0], reference), 0)
    assert scores.fastcomposer_identity(faces, reference) == pytest.approx(expected, abs=1e-9)
    assert scores.fastcomposer_identity(-reference[None], reference) == 0
    assert scores.fastcomposer_identity(np.zeros((0, RNG_WIDTH)), reference) == 0


@pytest.mark.parametrize(("table", "theirs"), FASTCOMPOSER)
def test_the_greedy_minimum_is_the_number_of_fastcomposers_code(table, theirs):
    assert scores.greedy_min(np.array(table)) == pytest.approx(theirs, abs=1e-9)


def test_the_greedy_and_the_hungarian_minimum_differ_where_the_best_pair_costs_the_others():
    table = np.array([[0.9, 0.8], [0.8, 0.1]])
    assert scores.greedy_min(table) == pytest.approx(0.1)
    assert scores.hungarian_min(table) == pytest.approx(0.8)


def test_a_third_of_random_tables_have_another_greedy_than_hungarian_minimum():
    rng = np.random.default_rng(7)
    tables = [rng.uniform(0, 1, (3, 3)) for _ in range(2000)]
    differ = sum(scores.greedy_min(t) != scores.hungarian_min(t) for t in tables)
    assert 600 < differ < 820


def test_multi_id_is_the_largest_sum_over_all_matchings_and_a_missing_person_counts_nothing():
    table = np.random.default_rng(8).uniform(0, 1, (3, 3))
    best = max(table[range(3), chosen].sum() for chosen in permutations(range(3)))
    assert scores.multi_id(table) == pytest.approx(best / 3, abs=1e-12)
    assert scores.multi_id(table[:, :1]) == pytest.approx(table[:, 0].max() / 3)
    assert scores.multi_id(np.zeros((2, 0))) == 0


def test_id_sim_takes_each_references_best_face_and_zero_without_faces():
    table = np.array([[0.2, 0.7], [0.6, 0.1]])
    assert scores.best_faces(table) == (0.7, 0.6)
    assert scores.best_faces(np.zeros((2, 0))) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("row", "confidence"),
    [((0.8, 0.2), 0.75), ((0.2, 0.8, 0.4), 0.5), ((0.5, -0.3), 1.0), ((-0.1, -0.3), 0.0)],
)
def test_id_conf_is_one_minus_the_second_best_over_the_best_face(row, confidence):
    assert scores.identity_confidence(np.array([row])) == pytest.approx((confidence,))


def test_id_conf_leaves_images_with_fewer_than_two_faces_out():
    assert scores.identity_confidence(np.array([[0.5]])) is None


def test_copy_paste_is_one_for_the_reference_itself_and_minus_one_for_the_other_photo():
    truth, reference, drawn = rows(9, 3)

    def angle(a, b):
        return acos(slow_cosine(a, b))

    expected = (angle(drawn, truth) - angle(drawn, reference)) / angle(truth, reference)
    assert scores.copy_paste(drawn, truth, reference) == pytest.approx(expected, abs=1e-9)
    assert scores.copy_paste(reference, truth, reference) == pytest.approx(1, abs=1e-6)
    assert scores.copy_paste(truth, truth, reference) == pytest.approx(-1, abs=1e-6)
    assert scores.copy_paste(drawn, truth, truth) is None


def test_a_reference_that_two_faces_are_nearest_to_is_drawn_twice():
    assert scores.duplicates(np.array([[0.8, 0.7], [0.1, 0.2]])) == 1
    assert scores.duplicates(np.array([[0.8, 0.1], [0.1, 0.7]])) == 0
    assert scores.duplicates(np.array([[0.2, 0.1], [0.1, 0.05]])) == 0, "nobody is near enough"
    assert scores.duplicates(np.zeros((2, 0))) == 0


def test_the_collapse_rate_is_the_share_below_tau():
    assert scores.collapse_rate([0.3, 0.5, 0.7, 0.45], 0.5) == 0.5


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.full((2, 3), np.nan), np.ones(3)])
def test_embeddings_without_a_direction_are_refused(bad):
    with pytest.raises(ValueError, match="embedding"):
        scores.cosines(bad, np.ones((1, 3)))


# ---------------------------------------------------------------- intervals


def test_the_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(10).normal(0.6, 0.1, 30)
    ours = bootstrap(values)
    theirs = scipy_bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=2e-3)
    assert ours.high == pytest.approx(theirs.high, abs=2e-3)


def test_the_interval_is_the_same_each_time_and_its_units_are_subjects_not_images():
    one = {"a": [0.5] * 40, "b": [0.7] * 2}
    assert by_subject(one) == by_subject(one)
    assert by_subject(one).mean == pytest.approx(0.6) and by_subject(one).units == 2
    assert bootstrap([0.4]).low is None and bootstrap([]) is None
