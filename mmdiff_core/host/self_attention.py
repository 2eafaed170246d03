"""The attn1 slots of a run whose regions bound self-attention; other runs have none.

Apply cannot know whether a prompt asks for it, so the slots are put into the run's own
transformer_options and are gone with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..bases import TransformerBlock
from ..regions.self_attention import ApartColumns, attend_apart
from .run import Group, ModelCall
from .slot import attend, grid_of, name_of

TAKEN = (
    "MM-Diff: bound_self_attention is on, but another node replaced the self-attention in {count} "
    "layers ({name}); turn bound_self_attention off, or remove that node"
)
MOVED = (
    "MM-Diff: bound_self_attention is on, but a self-attention layer was given {rows} x {q} "
    "positions that attend to {k}, where the model call has {wanted_rows} x {wanted}: another node "
    "(such as HyperTile or Token Merging) cuts, joins or adds positions there, so the regions "
    "cannot be placed on them; turn bound_self_attention off, or remove that node"
)


def bound_self_attention(options: dict, blocks: Sequence[TransformerBlock], key: str) -> dict:
    """transformer_options with a slot in the self-attention of these layers, for the application
    `key`. RuntimeError where another pack holds one of them."""
    replaced = options.get("patches_replace", {})
    held = replaced.get("attn1", {})
    slots, others = dict(held), []
    for block in blocks:
        before = held.get(block.slot, held.get(block.slot[:2]))
        if before is not None and not isinstance(before, BoundSelfAttention):
            others.append(before)
        keys = () if before is None else getattr(before, "keys", ())
        slots[block.slot] = BoundSelfAttention((*keys, key))
    if others:
        raise RuntimeError(TAKEN.format(count=len(others), name=name_of(others[0])))
    return {**options, "patches_replace": {**replaced, "attn1": slots}}


@dataclass(frozen=True, eq=False)
class BoundSelfAttention:
    """What ComfyUI calls in place of one layer's self-attention.

    keys  where the applications keep what they make, in transformer_options
    """

    keys: tuple[str, ...]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        heads = extra_options["n_heads"]
        own_attention = partial(attend, extra_options=extra_options)
        parts, done = [], 0
        for group, columns in sorted(self._bound(q, k, extra_options), key=lambda g: g[0].start):
            if done < group.start:
                free = slice(done, group.start)
                parts.append(own_attention(q[free], k[free], v[free]))
            own = slice(group.start, group.stop)
            parts.append(attend_apart(own_attention, q[own], k[own], v[own], heads, columns))
            done = group.stop
        if done < len(q):
            parts.append(own_attention(q[done:], k[done:], v[done:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _bound(
        self, q: Tensor, k: Tensor, extra_options: Mapping
    ) -> Iterator[tuple[Group, ApartColumns]]:
        """The groups whose subjects are kept apart in this layer, and their columns."""
        grid = grid_of(extra_options)
        width = q.shape[-1] // extra_options["n_heads"]
        for key in self.keys:
            call: ModelCall | None = extra_options.get(key)
            for group in () if call is None else call.groups:
                columns = group.state.self_region(group.view(grid), q, width)
                if columns is not None:
                    _check_positions(q, k, (call.rows, columns.own.shape[1]))
                    yield group, columns._replace(own=group.acting(columns.own))


def _check_positions(q: Tensor, k: Tensor, wanted: tuple[int, int]) -> None:
    """RuntimeError where the positions are not those of the layer's grid."""
    rows, positions = wanted
    if tuple(q.shape[:2]) != wanted or k.shape[1] != positions:
        raise RuntimeError(
            MOVED.format(
                rows=len(q), q=q.shape[1], k=k.shape[1], wanted_rows=rows, wanted=positions
            )
        )
