"""Matching subjects with what was found, against every possible matching."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from mmdiff_core.evaluation.matching import greedy, hungarian, left_over, matched_scores

SHAPES = ((1, 1), (2, 2), (3, 3), (4, 4), (2, 5), (5, 2), (1, 4), (4, 1))


def largest_sum(table: np.ndarray) -> float:
    """The best one-to-one sum, by trying them all."""
    wide = table if table.shape[0] <= table.shape[1] else table.T
    rows = range(len(wide))
    return max(wide[rows, chosen].sum() for chosen in permutations(range(wide.shape[1]), len(wide)))


@pytest.mark.parametrize("shape", SHAPES)
def test_hungarian_matching_has_the_largest_sum_of_all_matchings(shape):
    rng = np.random.default_rng(shape)
    for _ in range(60):
        table = rng.uniform(-1, 1, shape)
        matched = hungarian(table)
        pairs = [column for column in matched if column is not None]
        assert len(pairs) == len(set(pairs)) == min(shape)
        assert sum(matched_scores(table, matched)) == pytest.approx(largest_sum(table))


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_matching_takes_the_best_pair_that_is_left_each_time(shape):
    rng = np.random.default_rng(shape)
    for _ in range(60):
        table = rng.uniform(-1, 1, shape)
        matched, rows, columns = greedy(table), set(range(shape[0])), set(range(shape[1]))
        pairs = [(row, column) for row, column in enumerate(matched) if column is not None]
        assert len(pairs) == min(shape)
        for row, column in sorted(pairs, key=lambda pair: -table[pair]):
            assert table[row, column] == max(table[r, c] for r in rows for c in columns)
            rows, columns = rows - {row}, columns - {column}


def test_greedy_and_hungarian_differ_where_one_subject_takes_anothers_best():
    table = [[0.9, 0.8], [0.8, 0.1]]
    assert matched_scores(table, greedy(table)) == (0.9, 0.1)
    assert matched_scores(table, hungarian(table)) == (0.8, 0.8)


@pytest.mark.parametrize("match", [hungarian, greedy])
def test_nothing_found_leaves_every_subject_without_a_match(match):
    empty = torch.zeros(3, 0)
    assert match(empty) == (None, None, None)
    assert matched_scores(empty, match(empty), missing=-1.0) == (-1.0, -1.0, -1.0)
    assert match(np.zeros((0, 2))) == ()


def test_what_is_matched_with_nobody_is_told():
    table = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.8, 0.7, 0.0, 0.1]])
    assert hungarian(table) == (1, 0)
    assert left_over(table, hungarian(table)) == (2, 3)
    assert left_over(table, (None, 2)) == (0, 1, 3)


@pytest.mark.parametrize("match", [hungarian, greedy])
@pytest.mark.parametrize("table", [[[0.1, float("nan")]], [[float("inf")]], [0.1, 0.2]])
def test_scores_that_are_no_table_of_numbers_are_refused(match, table):
    with pytest.raises(ValueError, match="scores"):
        match(table)
