"""The paper's equation, and that sampling, training and this file call one function for it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from mmdiff_core.method.attention import add_image_branch, by_head

CORE = Path(__file__).resolve().parents[2] / "mmdiff_core"
HEADS = 2


def softmax_attention(q, k, v, bias=0.0) -> torch.Tensor:
    """softmax(Q K') V of [B P HD], written out."""
    q, k, v = (by_head(x, HEADS) for x in (q, k, v))
    probability = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias, dim=-1)
    return (probability @ v).transpose(1, 2).flatten(2)


def tensors(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, length, 16, generator=generator, dtype=torch.float64) for length in lengths
    ]


@pytest.mark.parametrize("wants_gradient", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.8, 1.0])
def test_the_sum_of_both_branches_with_lambda_is_what_the_paper_says(scale, wants_gradient):
    q, text_k, text_v, image_k, image_v = tensors(10, 7, 7, 4, 4)
    bias, gate = torch.randn(3, 1, 10, 4).double(), torch.rand(3, 1, 10, 1).double()
    text = softmax_attention(q, text_k, text_v)
    expected = text + scale * softmax_attention(q, image_k, image_v, bias) * gate[:, 0]
    q.requires_grad_(wants_gradient)
    found = add_image_branch(
        text.clone(), q, by_head(image_k, HEADS), by_head(image_v, HEADS), scale, bias, gate
    )
    assert torch.allclose(found, expected, atol=1e-12) and found.requires_grad == wants_gradient


@pytest.mark.parametrize("wants_gradient", [False, True])
def test_only_the_given_rows_change(wants_gradient):
    q, text, image_k, image_v = tensors(10, 10, 4, 4)
    expected = text[1:2] + 0.8 * softmax_attention(q[1:2], image_k[:1], image_v[:1])
    q.requires_grad_(wants_gradient)
    key, value = (by_head(x[:1], HEADS) for x in (image_k, image_v))
    found = add_image_branch(text.clone(), q, key, value, 0.8, rows=(1, 2))
    assert torch.allclose(found[1:2], expected, atol=1e-12)
    assert torch.equal(found[[0, 2]], text[[0, 2]])


def test_the_slot_and_the_trainer_call_this_function():
    """Nobody computes the image branch beside it.

    The trainer's maps need its probabilities and use `weigh`.
    """
    calls = set()
    for path in CORE.rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.Call) and getattr(item.func, "id", "") == "add_image_branch":
                calls.add(path.parent.name)
            assert (
                getattr(getattr(item, "func", None), "id", "") != "attend_by_head"
                or path.name == "attention.py"
            ), path
    assert calls == {"host", "training"}
