"""Multi-modal cross-attention (MM-Diff, arXiv 2403.15059). Pure torch: knows no host.

    out = softmax(Q K_t') V_t + lambda * softmax(Q K_i') V_i

`add_image_branch` is that equation. Its first term, the text branch, is computed by whoever calls
it: in ComfyUI by the host's own attention or by another pack that holds the layer.

An adapter may have a `Router` in each layer (after UniPortrait, arXiv 2408.05939). Then every
subject has a softmax of its own, and the image branch is their sum, weighed at each position p:

    sum_s r_s(p) * softmax(Q K_s') V_s,    r(p) = softmax_s(<B A q_p, t_s>)

q_p is the layer's query, all heads together, t_s the mean of the subject's tokens. The shares r_s
of all subjects add up to 1, as the probabilities of all tokens do without a router; they stay soft,
where UniPortrait picks one subject. There is no choice "none": for a single subject r = 1, and the
branch is the same bit for bit.

Shapes   B batch · R rows of it · P latent positions · N subject tokens · S subjects with tokens
         H heads · D head width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def by_head(x: Tensor, heads: int) -> Tensor:
    """[B L HD] -> [B H L D], a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rows_by_head(x: Tensor, start: int, stop: int, heads: int) -> Tensor:
    """Rows start..stop of [B L HD] -> [stop-start H L D], a view. Made by a single operation where
    operations count, twice a layer at every step; torch.compile and autograd get the three that
    they can follow."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return by_head(x[start:stop], heads)
    width, (row, position, channel) = x.shape[-1] // heads, x.stride()
    shape, strides = (
        (stop - start, heads, x.shape[1], width),
        (row, width * channel, position, channel),
    )
    return x.as_strided(shape, strides, x.storage_offset() + start * row)


def attend_by_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, [B H P D] x [1|B H N D] -> [B H P D]; `bias` [1|B 1 P N] is added to the
    logits."""
    k, v = (x if len(x) == len(q) else x.expand(len(q), -1, -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, bias)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """The same, [B P HD] x [1|B N HD] -> [B P HD]."""
    return (
        attend_by_head(by_head(q, heads), by_head(k, heads), by_head(v, heads), bias)
        .transpose(1, 2)
        .flatten(2)
    )


def attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None
) -> Tensor:
    """The same as `attend` as plain matrix products in the type of q: for training on a CPU, where
    the fused attention is slow backwards."""
    q, k, v = (by_head(x, heads) for x in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    seen = torch.softmax(logits if bias is None else logits + bias, dim=-1) @ v
    return seen.transpose(1, 2).flatten(2)


def attention_on(device: torch.device | str) -> Callable[..., Tensor]:
    """The attention to train with there: (q, k, v, heads, bias) -> [B P HD]."""
    return attend_by_products if torch.device(device).type == "cpu" else attend


def weigh(probability: Tensor, v: Tensor) -> Tensor:
    """What attention with these probabilities [B H P N] makes of values [B N HD]: [B P HD]. With
    `probabilities` this is `attend`, for whoever needs the map as well."""
    return (probability.to(v) @ by_head(v, probability.shape[1])).transpose(1, 2).flatten(2)


def probabilities(q: Tensor, k: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K') [B H P N] in at least float32, for maps and for the constraints on them;
    attention itself never needs it."""
    return probabilities_by_head(by_head(q, heads), by_head(k, heads), bias)


def probabilities_by_head(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, [B H P D] x [1|B H N D] -> [B H P N]."""
    logits = full(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
    return torch.softmax(logits if bias is None else logits + bias, dim=-1)


def full(x: Tensor) -> Tensor:
    """Half precisions as float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True, eq=False)
class Router:
    """Which subject each position of one layer reads; made once a run, or once a training step.

    keys    what the queries are compared with, one for each subject that has tokens [1|R S HD]
    tokens  how many tokens each of them has, in their order
    """

    keys: Tensor
    tokens: tuple[int, ...]

    def to(self, device: torch.device) -> Router:
        return Router(self.keys.to(device), self.tokens)

    def shares(self, q: Tensor, bias: Tensor | None = None) -> Tensor:
        """Share of each subject at each position [R P S], in at least float32; they sum to 1.

        q     [R P HD]
        bias  of the image branch [1|R 1 P|1 N]; a subject's share follows that of its token with
              the largest one: 0 where it is kept out, and in proportion to a region's share
        """
        logits = full(q @ self.keys.to(q).mT)
        if bias is not None:
            allowed = [own.amax(-1) for own in full(bias[:, 0]).split(self.tokens, -1)]
            logits = logits + torch.stack(allowed, -1)
        return torch.softmax(logits, -1)

    def each(self, bias: Tensor | None) -> tuple[Tensor | None, ...]:
        """The bias of each subject's tokens."""
        return len(self.tokens) * (None,) if bias is None else bias.split(self.tokens, -1)


def attend_subjects(
    q: Tensor,
    rows: tuple[int, int],
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    router: Router | None,
) -> Tensor:
    """These rows of q [B P HD] to the subjects' tokens [1|R H N D] -> [R H P D]: in one softmax, or
    by a softmax for each subject, weighed by the router."""
    apart, total = rows_by_head(q, *rows, key.shape[1]), None
    if router is None:
        return attend_by_head(apart, key, value, bias)
    shares = router.shares(q[slice(*rows)], bias).to(q)[:, None, :, :, None].unbind(-2)
    keys, values = key.split(router.tokens, 2), value.split(router.tokens, 2)
    for k, v, own, share in zip(keys, values, router.each(bias), shares, strict=True):
        seen = attend_by_head(apart, k, v, own) * share
        total = seen if total is None else total + seen
    return total


def image_probabilities(
    q: Tensor, key: Tensor, heads: int, bias: Tensor | None, router: Router | None = None
) -> Tensor:
    """What the image branch weighs the values with [B H P N], as `probabilities`. With a router
    those of a subject's tokens sum to its share in every head.

    key  [1|B N HD]
    """
    if router is None:
        return probabilities(q, key, heads, bias)
    parts, shares = [], router.shares(q, bias).unbind(-1)
    keys = key.split(router.tokens, 1)
    for k, own, share in zip(keys, router.each(bias), shares, strict=True):
        parts.append(probabilities(q, k, heads, own) * share[:, None, :, None])
    return torch.cat(parts, -1)


def add_image_branch(
    text: Tensor,
    q: Tensor,
    key: Tensor,
    value: Tensor,
    fuse_scale: float,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    rows: tuple[int, int] | None = None,
    router: Router | None = None,
) -> Tensor:
    """The multi-modal cross-attention of one layer: softmax(Q K_t') V_t + lambda * softmax(Q K_i' +
    bias) V_i * gate.

    text        [B P HD], the first term: the text's own attention, by whoever computes it
    q           [B P HD]
    key, value  [1|R H N D] of all subjects' tokens
    fuse_scale  lambda
    bias        [1|R 1 P N] added to the logits, or None
    gate        [1|R 1 P 1], or [1 1 1 1], in 0..1: mutes positions; None = 1
    rows        start and stop of the R rows that show these subjects; the others keep their bits
    router      of these subjects; None = all their tokens share one softmax

    Writes into `text` where no gradient is wanted: it is the fresh result of an attention call.
    Training, inference and the tests call this one function.
    """
    start, stop = rows or (0, len(q))
    heads = key.shape[1]
    if key.shape[2] == 0:
        return text
    seen = attend_subjects(q, (start, stop), key, value, bias, router)
    if torch.is_grad_enabled() and (text.requires_grad or seen.requires_grad):
        added = fuse_scale * (seen if gate is None else seen * gate).transpose(1, 2).flatten(2)
        return torch.cat([text[:start], text[start:stop] + added, text[stop:]])
    own = rows_by_head(text, start, stop, heads)
    if gate is None:
        own.add_(seen, alpha=fuse_scale)
    else:
        own.addcmul_(seen, gate, value=fuse_scale)
    return text
