"""Self-attention between subjects: what the columns in q and k make of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmdiff_core.method.attention import attend
from mmdiff_core.regions.self_attention import LEAST, ApartColumns, apart, attend_apart, exclusive

HEADS = 3


def projections(positions: int = 12, rows: int = 2, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, positions, HEADS * 16, generator=draw) for _ in range(3)]


def bounded(q: Tensor, k: Tensor, v: Tensor, columns: Tensor) -> Tensor:
    wide = ApartColumns.of(columns, q.shape[-1] // HEADS, q.dtype)
    return attend_apart(lambda *qkv: attend(*qkv, HEADS), q, k, v, HEADS, wide)


def matrix(columns: Tensor) -> Tensor:
    """The logit bias [B 1 P P], written out."""
    pairs = torch.zeros(len(columns), columns.shape[1], columns.shape[1])
    for s in range(columns.shape[-1]):
        for t in range(columns.shape[-1]):
            if s != t:
                pairs -= columns[:, :, None, s] * columns[:, None, :, t]
    return pairs[:, None]


def halves() -> Tensor:
    """Two subjects [1 S P]: four positions of each, and four of nobody."""
    shares = torch.zeros(1, 2, 12)
    shares[0, 0, :4] = shares[0, 1, 4:8] = 1
    return shares


@pytest.mark.parametrize("subjects", [2, 3, 6, 9])
def test_it_is_attention_with_the_sum_over_pairs_of_subjects_in_its_logits(subjects):
    q, k, v = projections(seed=subjects)
    columns = apart(exclusive(torch.rand(2, subjects, 12) ** 3))
    assert torch.allclose(
        bounded(q, k, v, columns), attend(q, k, v, HEADS, matrix(columns)), atol=1e-5
    )


def test_positions_of_one_subject_read_nothing_of_another_and_the_ground_reads_all():
    q, k, v = projections()
    hidden = torch.zeros(1, 1, 12, 12)
    hidden[..., :4, 4:8] = hidden[..., 4:8, :4] = -torch.inf
    out = bounded(q, k, v, apart(exclusive(halves())))
    assert torch.allclose(out, attend(q, k, v, HEADS, hidden), atol=1e-5)
    assert torch.allclose(out[:, 8:], attend(q, k, v, HEADS)[:, 8:], atol=1e-5)
    louder = v.clone()
    louder[:, 4:8] += 1000
    again = bounded(q, k, louder, apart(exclusive(halves())))
    assert torch.allclose(again[:, :4], out[:, :4], atol=1e-4)


def test_where_regions_overlap_or_nobody_has_one_nothing_is_held_apart():
    everywhere = torch.ones(1, 2, 12)
    assert not apart(exclusive(everywhere)).any() and not apart(exclusive(0 * everywhere)).any()
    both = halves()
    both[0, 0, 4:8] = 1  # the first reaches over the second
    assert not exclusive(both)[0, :, 4:8].any() and exclusive(both)[0, 0, :4].all()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_soft_regions_let_one_minus_the_square_of_their_share_through(share):
    columns = apart(torch.tensor([[[share, 0.0], [0.0, share]]]))
    passed = matrix(columns).exp()
    assert torch.allclose(passed[0, 0, 0, 1], torch.tensor(1 - share**2), atol=1e-5)
    assert matrix(apart(torch.eye(2)[None])).exp()[0, 0, 0, 1].item() == pytest.approx(LEAST, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_are_as_near_as_their_plain_attention_is(dtype):
    q, k, v = projections()
    columns = apart(exclusive(halves()))
    exact = attend(q, k, v, HEADS, matrix(columns))
    found = bounded(q.to(dtype), k.to(dtype), v.to(dtype), columns).float()
    plain = attend(q.to(dtype), k.to(dtype), v.to(dtype), HEADS).float()
    near = (plain - attend(q, k, v, HEADS)).abs().max()
    assert (found - exact).abs().max() < 3 * near


def test_rows_of_a_batch_can_have_regions_of_their_own():
    q, k, v = projections()
    own = torch.cat([apart(exclusive(halves())), torch.zeros(1, 12, 2)])
    out = bounded(q, k, v, own)
    assert torch.allclose(out[:1], bounded(q[:1], k[:1], v[:1], own[:1]), atol=1e-6)
    assert torch.allclose(out[1], attend(q, k, v, HEADS)[1], atol=1e-5)
