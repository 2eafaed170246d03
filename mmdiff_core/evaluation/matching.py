"""Which of the found faces or things is which subject: one to one, from a table of scores.

Shapes   S subjects · F found faces or things
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Scores = Tensor | np.ndarray | Sequence[Sequence[float]]
Matched = tuple[int | None, ...]  # for each subject the number of what was found, or None


def hungarian(scores: Scores) -> Matched:
    """The one-to-one matching with the largest sum of scores.

    scores  [S F], larger = more alike, any finite numbers; S and F may differ and may be 0

    As many pairs as the shorter side has; None for subjects beyond them. ValueError for scores that
    are no table of finite numbers.
    """
    table = _table(scores)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return _by_subject(zip(rows.tolist(), columns.tolist(), strict=True), len(table))


def greedy(scores: Scores) -> Matched:
    """The best pair of the whole table, then the best of what is left, and so on. Of equal pairs
    the first subject's counts, then the first found one's. Arguments and errors as in `hungarian`.
    """
    table = _table(scores).copy()
    pairs = []
    for _ in range(min(table.shape)):
        row, column = (int(i) for i in np.unravel_index(int(table.argmax()), table.shape))
        pairs.append((row, column))
        table[row, :] = table[:, column] = -np.inf
    return _by_subject(pairs, len(table))


def matched_scores(scores: Scores, matched: Matched, missing: float = 0.0) -> tuple[float, ...]:
    """Each subject's score with what it was matched with; `missing` for those without."""
    table = _table(scores)
    return tuple(
        missing if column is None else float(table[row, column])
        for row, column in enumerate(matched)
    )


def left_over(scores: Scores, matched: Matched) -> tuple[int, ...]:
    """Numbers of what was found and is matched with no subject, in order."""
    return tuple(sorted(set(range(_table(scores).shape[1])) - set(matched)))


def _by_subject(pairs, subjects: int) -> Matched:
    found = dict(pairs)
    return tuple(found.get(subject) for subject in range(subjects))


def _table(scores: Scores) -> np.ndarray:
    if isinstance(scores, Tensor):
        scores = scores.detach().to("cpu", torch.float64).numpy()
    table = np.asarray(scores, np.float64)
    if table.ndim != 2:
        raise ValueError(f"scores have the shape {list(table.shape)}, expected [subjects, found]")
    if not np.isfinite(table).all():
        raise ValueError("scores contain values that are no finite numbers")
    return table
