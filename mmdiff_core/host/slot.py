"""The attn2 slot of one layer: the text branch as it was, then the subjects, then what other packs
add."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import comfy.ldm.modules.attention as host_attention
from torch import Tensor

from ..bases import Slot
from ..method.attention import add_image_branch
from ..regions.attention_maps import fit_columns
from .layer_attention import LayerAttention
from .run import Group, ModelCall

REPEATED = (
    "MM-Diff: a cross-attention layer was given {found} rows in a model call with {rows}: a node "
    "such as Attention Couple repeats the image for each region inside the layer and exchanges the "
    "text there, so the subjects of its prompts cannot be told apart. Remove that node and give "
    "every region its own MM-Diff Text Encode, with Conditioning (Set Mask) or Conditioning (Set "
    "Area), joined by Conditioning (Combine); where no prompt has subjects, take the model from "
    "before Apply MM-Diff Attention"
)
ALWAYS = 1e8  # a sigma that no schedule begins above: what percent 0 becomes


@dataclass(frozen=True, eq=False)
class Added:
    """What another pack adds to a layer's result, and between which sigmas."""

    callback: Callable
    kwargs: dict

    def __call__(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        inside = self.inside(extra_options.get("sigmas"))
        if inside is False:
            return out
        theirs = self.callback(out, q, k, v, extra_options, **self.kwargs)
        if inside is not True:
            theirs = theirs.masked_fill(~inside.view(1, 1, 1), 0)
        return (out + theirs).to(q.dtype)

    def inside(self, sigmas: Tensor | None) -> bool | Tensor:
        """Whether it acts at this sigma. On a GPU the answer stays there as a tensor: reading it
        would stop the sampling loop."""
        start, end = self.kwargs.get("sigma_start", math.inf), self.kwargs.get("sigma_end", 0.0)
        if sigmas is None or (start >= ALWAYS and end <= 0):
            return True
        inside = (sigmas[:1] <= start) & (sigmas[:1] >= end)
        return bool(inside) if inside.device.type == "cpu" else inside


@dataclass(frozen=True, eq=False)
class SubjectAttention:
    """What ComfyUI calls in place of one layer's cross-attention.

    key         where its application keeps what it makes, in transformer_options
    fuse_scale  lambda of this layer
    inner       what held the slot before, or None
    added       what others add to the result

    IPAdapter, InstantID and PuLID call `.add` on whatever holds a slot when they come; its meaning
    here is theirs. That changes this object, so every clone of a model gets slots of its own
    (`apply.own_slots`).
    """

    key: str
    slot: Slot
    fuse_scale: float
    inner: Callable | None = None
    added: list[Added] = field(default_factory=list)

    def add(self, callback: Callable, **kwargs) -> None:
        """callback(out, q, k, v, extra_options, **kwargs) is added to the result while `sigma_end`
        <= sigma <= `sigma_start`."""
        self.added.append(Added(callback, kwargs))

    def own(self) -> SubjectAttention:
        """The same, to which others may add without changing this one."""
        inner = self.inner.own() if isinstance(self.inner, SubjectAttention) else self.inner
        return replace(self, inner=inner, added=list(self.added))

    def holds(self, key: str) -> bool:
        """Whether this is the slot of that application, or directly around it."""
        return self.key == key or (
            isinstance(self.inner, SubjectAttention) and self.inner.holds(key)
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        call: ModelCall | None = extra_options.get(self.key)
        groups = () if call is None else call.groups
        if call is not None:
            if len(q) != call.rows:
                raise RuntimeError(REPEATED.format(found=len(q), rows=call.rows))
            if call.uncalled:
                call.uncalled.pop(self.slot, None)
        out = self.text_branch(q, k, v, extra_options, self.noun_bias(q, k, groups, extra_options))
        if groups and self.inner is not None:
            out = out.clone()  # another pack's result may be shared; ours is written into
        for group in groups:
            out = self.show(out, q, k, group, extra_options)
        for other in self.added:
            out = other(out, q, k, v, extra_options)
        return out

    def text_branch(
        self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, mask: Tensor | None
    ) -> Tensor:
        """The layer's cross-attention to the text, [B P HD]: by what held the slot before, or the
        host's own."""
        if self.inner is not None:
            return self.inner(q, k, v, extra_options)
        return attend(q, k, v, extra_options, mask)

    def noun_bias(
        self, q: Tensor, k: Tensor, groups: Sequence[Group], extra_options: dict
    ) -> Tensor | None:
        """Bias [B 1 P T] of the text for the rows whose nouns are held to regions, or None when no
        row's are."""
        whole = None
        for group in groups:
            if not group.state.holds_nouns:
                continue
            bias = group.state.noun_region(group.view(grid_of(extra_options)), q)
            if bias is not None:
                whole = q.new_zeros(len(q), 1, q.shape[1], k.shape[1]) if whole is None else whole
                whole[group.start : group.stop] = group.acting(fit_columns(bias, k.shape[1]))
        return whole

    def show(self, out: Tensor, q: Tensor, k: Tensor, group: Group, extra_options: dict) -> Tensor:
        """The image branch on the group's rows."""
        key, value = group.state.keys[self.slot]
        start, stop = group.start, group.stop
        if group.image is not None and len(value) > 1:
            value = value[group.image : group.image + stop - start]
        if key.dtype != q.dtype or key.device != q.device:
            key, value = key.to(q), value.to(q)
        view = group.view(grid_of(extra_options))
        bias, gate = group.state.token_region(view, q)
        router = group.state.routers.get(self.slot)
        for watcher in group.watchers:
            if self.slot in watcher.slots:
                heads = extra_options["n_heads"]
                watcher.look(
                    LayerAttention(
                        q[start:stop],
                        k[start:stop],
                        heads,
                        key,
                        bias,
                        view.grid,
                        view.first,
                        view.area,
                        view.latent,
                        router,
                    )
                )
        if not isinstance(group.factor, float):
            gate = group.acting(q.new_ones(1, 1, 1, 1) if gate is None else gate)
        rows = start, stop
        return add_image_branch(out, q, key, value, self.fuse_scale, bias, gate, rows, router)

    def __deepcopy__(self, memo: dict) -> SubjectAttention:
        return self


def attend(
    q: Tensor, k: Tensor, v: Tensor, extra_options: dict, mask: Tensor | None = None
) -> Tensor:
    """The host's own attention of a layer, [B P HD]."""
    return host_attention.optimized_attention(
        q,
        k,
        v,
        extra_options["n_heads"],
        mask=mask,
        attn_precision=extra_options.get("attn_precision"),
        transformer_options=extra_options,
    )


def name_of(patch: object) -> str:
    """What another pack's function is called, for a message."""
    return getattr(patch, "__qualname__", type(patch).__qualname__)


def grid_of(extra_options: dict) -> tuple[int, int]:
    """Height and width of the layer's positions."""
    return tuple(extra_options["activations_shape"][-2:])
