"""A first stage of training: nouns and subject tokens that say what a description would say.

A text-to-image model already knows how to draw "a striped red cat" from the state of the noun in
that caption. Before the denoising loss runs through the UNet, which is slow, the adapter learns
that state from the references of the cat: the noun of the plain caption, fused with the subject,
and the mean of the subject's tokens are compared with the noun's state in a caption that describes
the subject. Only the text and image encoders run.

Shapes   B examples · S subjects · N tokens of all subjects · D context width
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .conditions import Conditions
from .example import Example


def told_example(example: Example) -> Example:
    """The example with what is told of its subjects before their nouns in the caption."""
    caption, subjects, at = "", [], 0
    for subject in sorted(example.subjects, key=lambda one: one.span):
        start, end = subject.span
        caption += example.caption[at:start] + (f"{subject.told} " if subject.told else "")
        span = (len(caption), len(caption) + end - start)
        caption, at = caption + example.caption[start:end], end
        subjects.append(replace(subject, span=span))
    return replace(example, caption=caption + example.caption[at:], subjects=tuple(subjects))


def noun_states(context: Tensor, nouns: Tensor) -> Tensor:
    """States [B L D] and columns of the nouns [B S] -> the nouns' states [B S D]."""
    return context.gather(1, nouns[..., None].expand(-1, -1, context.shape[-1]))


def mean_tokens(conditions: Conditions) -> Tensor:
    """Mean of every subject's tokens [B S D]; zeros where there is no subject."""
    subjects = torch.arange(conditions.present.shape[1], device=conditions.owner.device)
    own = (conditions.owner == subjects[:, None]).float()  # S N
    there = (conditions.bias[:, 0] == 0).float() * own  # B S N
    total = there.sum(-1, keepdim=True).clamp_min(1)
    return (there / total) @ conditions.tokens


def distance(told: Tensor, wanted: Tensor, present: Tensor) -> Tensor:
    """Squared error of states [B S D] in units of the variance of the wanted ones over the batch
    (1 = no better than their mean), averaged over the subjects that are `present` [B S].

    Returns a scalar; 0 when no subject is there.
    """
    if not present.any():
        return told.sum() * 0
    targets = wanted[present].float()
    spread = (targets - targets.mean(0)).square().mean().clamp_min(1e-6)
    return (told[present].float() - targets).square().mean() / spread


def describing_loss(conditions: Conditions, wanted: Tensor, described: Tensor) -> Tensor:
    """Distance of nouns and of tokens from the nouns' states in the descriptions, both averaged.

    wanted     [B S D]
    described  which subjects have a description, bool [B S]
    """
    nouns = noun_states(conditions.context, conditions.nouns)
    tokens = mean_tokens(conditions)
    return (distance(nouns, wanted, described) + distance(tokens, wanted, described)) / 2
