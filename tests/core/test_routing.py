"""The routed image branch: a softmax for each subject, and a router that weighs them."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff_core.method.attention import (
    Router,
    add_image_branch,
    by_head,
    image_probabilities,
    weigh,
)
from mmdiff_core.regions.attention_maps import members, owners, routed_map

HEADS, WIDTH, PLACES = 2, 16, 10


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def router_of(*tokens: int, rows: int = 3) -> Router:
    return Router(drawn(rows, len(tokens), WIDTH), tokens)


def plain_reference(q, k, v, bias, router) -> tuple[torch.Tensor, torch.Tensor]:
    """What the branch gives [R P HD] and each subject's share [R P S], position by position."""
    out, shares = torch.zeros_like(q), torch.zeros(*q.shape[:2], len(router.tokens)).to(q)
    head = WIDTH // HEADS
    for row in range(len(q)):
        for place in range(q.shape[1]):
            logits = []
            for s, own in enumerate(owners(router.tokens)):
                logit = router.keys[row, s] @ q[row, place]
                logits.append(logit + bias[row, 0, place, list(own)].max())
            shares[row, place] = torch.stack(logits).softmax(0)
            for s, own in enumerate(owners(router.tokens)):
                for h in range(HEADS):
                    part = slice(h * head, (h + 1) * head)
                    seen = k[row, list(own), part] @ q[row, place, part] / head**0.5
                    seen = (seen + bias[row, 0, place, list(own)]).softmax(0)
                    value = seen @ v[row, list(own), part]
                    out[row, place, part] += shares[row, place, s] * value
    return out, shares


def branch(q, k, v, bias=None, gate=None, router=None, rows=None, scale=1.0) -> torch.Tensor:
    key, value = by_head(k, HEADS), by_head(v, HEADS)
    return add_image_branch(torch.zeros_like(q), q, key, value, scale, bias, gate, rows, router)


@pytest.mark.parametrize("wants_gradient", [False, True])
@pytest.mark.parametrize("tokens", [(4,), (4, 8), (4, 1, 3)])
def test_the_routed_branch_is_what_a_plain_computation_gives(tokens, wants_gradient):
    q, k, v = drawn(3, PLACES, WIDTH), drawn(3, sum(tokens), WIDTH), drawn(3, sum(tokens), WIDTH)
    bias, gate = drawn(3, 1, PLACES, sum(tokens)), torch.rand(3, 1, PLACES, 1).double()
    router = router_of(*tokens)
    expected, shares = plain_reference(q, k, v, bias, router)
    q.requires_grad_(wants_gradient)
    found = branch(q, k, v, bias, gate, router, scale=0.8)
    assert torch.allclose(found, 0.8 * expected * gate[:, 0], atol=1e-12)
    assert torch.allclose(router.shares(q, bias), shares, atol=1e-12)
    probability = image_probabilities(q, k, HEADS, bias, router)
    assert torch.allclose(weigh(probability, v), expected, atol=1e-12)
    member = members(owners(tokens), sum(tokens)).double()
    in_each_head = (probability @ member).transpose(1, 2)
    assert torch.allclose(in_each_head, shares[:, :, None].expand_as(in_each_head), atol=1e-12)
    assert torch.allclose(routed_map(router, q, member, bias), shares.transpose(1, 2), atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_with_one_subject_the_branch_is_the_unrouted_one_bit_for_bit(kind, wants_gradient):
    q, k, v = (drawn(3, n, WIDTH).to(kind) for n in (PLACES, 4, 5))
    bias, gate = drawn(3, 1, PLACES, 4).to(kind), torch.rand(3, 1, PLACES, 1).to(kind)
    q.requires_grad_(wants_gradient)
    for given in ((None, None), (bias, gate)):
        plain = branch(q, k, v[:, :4], *given)
        assert torch.equal(branch(q, k, v[:, :4], *given, router_of(4)), plain)
        assert plain.abs().max() > 0.1


def test_with_two_subjects_it_is_another_one():
    q, k, v = drawn(3, PLACES, WIDTH), drawn(3, 8, WIDTH), drawn(3, 9, WIDTH)[:, :8]
    difference = branch(q, k, v, router=router_of(4, 4)) - branch(q, k, v)
    assert difference.abs().max() > 0.1


def test_only_the_given_rows_are_routed():
    q, k, v = drawn(3, PLACES, WIDTH), drawn(1, 8, WIDTH), drawn(1, 9, WIDTH)[:, :8]
    router = router_of(4, 4, rows=1)
    found = branch(q, k, v, router=router, rows=(1, 2))
    assert torch.equal(found[1:2], branch(q[1:2], k, v, router=router))
    assert not found[[0, 2]].any()


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_a_subject_that_is_kept_out_has_no_share_and_changes_nothing(kind):
    q, k, v = (drawn(3, n, WIDTH).to(kind) for n in (PLACES, 8, 9))
    v, router = v[:, :8], router_of(4, 4)
    bias = torch.zeros(3, 1, PLACES, 8, dtype=kind)
    bias[..., 4:] = torch.finfo(kind).min / 2
    found = branch(q, k, v, bias, router=router)
    alone = branch(q, k[:, :4], v[:, :4], router=router_of(4))
    assert torch.isfinite(found).all() and torch.equal(found, alone)
    assert not router.shares(q, bias)[..., 1].any()


def test_a_share_of_a_region_weighs_a_subject_in_proportion():
    q, router = drawn(3, PLACES, WIDTH), router_of(4, 4)
    bias = torch.zeros(3, 1, PLACES, 8).double()
    bias[..., 4:] = torch.tensor(0.25).log()
    free, held = router.shares(q), router.shares(q, bias)
    ratio = (held[..., 1] / held[..., 0]) / (free[..., 1] / free[..., 0])
    assert torch.allclose(ratio, torch.full_like(ratio, 0.25))


class Waits(TorchDispatchMode):
    """Names the operations that make a GPU's host wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = (
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "equal",
            "index",
            "masked_select",
        )
        if func.overloadpacket.__name__ in waiting:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


def test_neither_the_branch_nor_its_maps_make_the_host_wait():
    q, k, v = drawn(3, PLACES, WIDTH), drawn(1, 8, WIDTH), drawn(1, 9, WIDTH)[:, :8]
    router, bias = router_of(4, 4, rows=1), torch.zeros(1, 1, PLACES, 8).double()
    member = members(owners((4, 4)), 8).double()
    with Waits() as waits:
        branch(q, k, v, bias, router=router)
        routed_map(router, q, member, bias)
    assert waits.found == []


def test_the_gradients_of_the_router_are_right_and_vanish_for_one_subject():
    q, k, v = drawn(2, 4, WIDTH), drawn(2, 8, WIDTH), drawn(2, 9, WIDTH)[:, :8]

    def routed(keys) -> torch.Tensor:
        return branch(q, k, v, router=Router(keys, (4, 4)))

    keys = drawn(2, 2, WIDTH).requires_grad_()
    assert torch.autograd.gradcheck(routed, keys)
    routed(keys).square().sum().backward()
    assert keys.grad.abs().max() > 0.01
    one = keys[:, :1].detach().requires_grad_()
    branch(q, k, v, router=Router(one, (8,))).square().sum().backward()
    assert not one.grad.any()
