"""One call of the host's UNet with the trainer's attention in it, and checkpointing by block.

The host's own checkpointing reads `transformer_options` again while it recomputes a block, when
they belong to another block already. Here they are copied at the call, and what the slots measure
is a result of the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...bases import Slot
from ...method.attention import attend_by_products
from ...training.bridge import SlotCall

MEASURES = "mmdiff_measures"  # transformer_options: what the slots measured


def slot_options(
    slots: Mapping[Slot, SlotCall], measured: list[Tensor], self_slots: Mapping[Slot, SlotCall]
) -> dict:
    """transformer_options with these calls in the cross-attention and in the self-attention; they
    add to `measured`."""
    patches = {"attn2": _patches(slots), "attn1": _patches(self_slots)}
    return {"patches_replace": patches, MEASURES: measured}


def _patches(calls: Mapping[Slot, SlotCall]) -> dict[Slot, Callable]:
    return {slot: _patch(call) for slot, call in calls.items()}


def _patch(call: SlotCall) -> Callable:
    def patch(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        grid = tuple(extra_options["activations_shape"][-2:])
        out, measure = call(q, k, v, extra_options["n_heads"], grid)
        if measure is not None:
            extra_options[MEASURES].append(measure)
        return out

    return patch


def training_options(device: torch.device | str) -> dict:
    """transformer_options of a training step.

    On a CPU the host's attention is replaced by one that is faster in the backward pass.
    """
    cpu = torch.device(device).type == "cpu"
    return {"optimized_attention_override": _by_products} if cpu else {}


def _by_products(
    attention: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    **options,
) -> Tensor:
    if mask is None:
        return attend_by_products(q, k, v, heads)
    return attention(q, k, v, heads, mask=mask, **options)


@contextmanager
def recomputed(unet: nn.Module) -> Iterator[None]:
    """While open, the transformer blocks are recomputed in the backward pass."""
    blocks = [m for m in unet.modules() if isinstance(m, BasicTransformerBlock)]
    for block in blocks:
        block.forward = _recomputed(type(block).forward.__get__(block))
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _recomputed(forward: Callable) -> Callable:
    """A block's forward, recomputed under the options that it was first called with."""

    def run(x: Tensor, context: Tensor, options: dict) -> tuple:
        measured: list[Tensor] = []
        out = forward(x, context=context, transformer_options={**options, MEASURES: measured})
        return out, *measured

    def call(
        x: Tensor, context: Tensor | None = None, transformer_options: dict | None = None
    ) -> Tensor:
        options = dict(transformer_options or {})
        out, *measured = checkpoint(run, x, context, options, use_reentrant=False)
        options[MEASURES].extend(measured)
        return out

    return call
