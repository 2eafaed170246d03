"""What training minimises, as pure functions. The constraint is FastComposer's balanced L1.

    loss = denoising + text * constraint(noun's map) + image * constraint(subject's map)
           + leak * leakage
    constraint = mean probability outside the subject's mask - mean probability inside it

Every function returns one number per example, so that a mean over examples is the same however
they are spread over processes.

Shapes   B examples · S subjects · H heads · P latent positions · T text tokens · N subject tokens
         C h w latents
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import full


def denoising_target(
    prediction_type: str, latents: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """What the UNet should predict: "eps" the noise, "v" alpha * noise - sigma * latents.

    alpha, sigma  [B 1 1 1], their squares add to 1
    """
    if prediction_type == "eps":
        return noise
    if prediction_type == "v":
        return alpha * noise - sigma * latents
    raise ValueError(f"prediction_type is {prediction_type!r}, expected 'eps' or 'v'")


def min_snr_weight(prediction_type: str, snr: Tensor, gamma: float | None) -> Tensor:
    """Weight of each example's squared error [B]; gamma None = 1.

    Min-SNR (Hang et al.) weighs the error of the image by min(snr, gamma).
    """
    if gamma is None:
        return torch.ones_like(snr)
    scale = snr if prediction_type == "eps" else snr + 1
    return torch.minimum(snr, torch.full_like(snr, gamma)) / scale


def denoising_loss(
    prediction: Tensor, target: Tensor, weight: Tensor, where: Tensor | None = None
) -> Tensor:
    """Squared error of each example [B], in at least float32.

    weight  of each example [B]
    where   weight of each position [B 1 h w], with a mean of 1; None = equal
    """
    squares = (full(prediction) - full(target)).square()
    return weight * (squares if where is None else squares * where).flatten(1).mean(1)


def fading_weight(index: Tensor, weight: float, until: int) -> Tensor:
    """Weight of the subjects' pixels at examples `index` [B].

    It falls linearly from `weight` to 1 over `until` examples; 0 = it stays.
    """
    left = torch.ones_like(index, dtype=torch.float32)
    if until:
        left = (1 - index.float() / until).clamp_min(0)
    return 1 + (weight - 1) * left


def weigh_subjects(masks: Tensor, grid: tuple[int, int], weight: float | Tensor) -> Tensor:
    """Masks [B S H W] in 0..1 -> weights of the positions [B 1 h w], with a mean of 1.

    A subject's positions count `weight` (a number, or [B]) times as much as the background's.
    """
    inside = F.interpolate(full(masks), size=grid, mode="area").amax(1, keepdim=True)
    more = torch.as_tensor(weight, device=inside.device).view(-1, 1, 1, 1) - 1
    weights = 1 + more * inside
    return weights / weights.mean((2, 3), keepdim=True)


def masks_on_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks [B S H W] in 0..1 -> share of each layer position that is the subject's [B S P]."""
    return F.interpolate(full(masks), size=grid, mode="area").flatten(2)


def balanced_l1(probability: Tensor, mask: Tensor, present: Tensor) -> Tensor:
    """Mean outside minus mean inside, averaged over heads and present subjects [B].

    It lies in -1..1; lower is better.

    probability   of attending to subject s at a position [B H P S]
    mask          [B S P] in 0..1
    present       [B S] bool; subjects that are not there, or whose mask vanished on this grid, do
                  not count
    """
    inside = mask.transpose(1, 2)[:, None]  # B 1 P S
    outside = 1 - inside
    counts = present & (mask.sum(-1) > 0) & ((1 - mask).sum(-1) > 0)  # B S
    mean_in = (probability * inside).sum(2) / inside.sum(2).clamp_min(1e-6)
    mean_out = (probability * outside).sum(2) / outside.sum(2).clamp_min(1e-6)
    per_subject = (mean_out - mean_in).mean(1) * counts  # B S
    return per_subject.sum(1) / counts.sum(1).clamp_min(1)


def dice(probability: Tensor, mask: Tensor, present: Tensor) -> Tensor:
    """1 - Dice of the heads' mean map and the mask, averaged over the present subjects [B].

    It lies in 0..1; lower is better. Arguments and what counts as in `balanced_l1`. MultiCrafter
    compares maps in this form.
    """
    heads, inside = probability.mean(1), mask.transpose(1, 2)  # B P S
    counts = present & (mask.sum(-1) > 0) & ((1 - mask).sum(-1) > 0)  # B S
    total = (heads + inside).sum(1).clamp_min(1e-6)
    per_subject = (1 - 2 * (heads * inside).sum(1) / total) * counts
    return per_subject.sum(1) / counts.sum(1).clamp_min(1)


CONSTRAINTS = {"l1": balanced_l1, "dice": dice}


def leaked(together: Tensor, apart: Tensor, mask: Tensor) -> Tensor:
    """How much of the other subjects shows inside one subject's mask [B]: the mean squared
    difference there between two predictions (XVerse's form).

    together  with all subjects [B C h w]
    apart     with this subject alone, the others as their bare classes [B C h w]
    mask      of this subject [B 1 H W] in 0..1; 0 where it vanished on the latents' grid
    """
    inside = F.interpolate(full(mask), size=together.shape[-2:], mode="area")
    squares = (full(together) - full(apart)).square().mean(1, keepdim=True)
    return (squares * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1e-6)


def inside_share(probability: Tensor, mask: Tensor, present: Tensor) -> Tensor:
    """Mean probability inside the subject's own mask, averaged like `balanced_l1` [B].

    This is what the constraint should raise.
    """
    inside = mask.transpose(1, 2)[:, None]
    counts = present & (mask.sum(-1) > 0)
    mean_in = ((probability * inside).sum(2) / inside.sum(2).clamp_min(1e-6)).mean(1) * counts
    return mean_in.sum(1) / counts.sum(1).clamp_min(1)


def noun_probability(text: Tensor, nouns: Tensor) -> Tensor:
    """The text branch's softmax [B H P T] at every subject's noun [B S] -> [B H P S]."""
    index = nouns[:, None, None, :].expand(-1, text.shape[1], text.shape[2], -1)
    return text.gather(-1, index)


def subject_probability(image: Tensor, owner: Tensor, subjects: int) -> Tensor:
    """The image branch's softmax [B H P N] summed over each subject's tokens -> [B H P S].

    owner  subject of each token [N]
    """
    member = F.one_hot(owner, subjects).to(image)
    return image @ member


def noise_gate(fraction: Tensor, first: float, last: float) -> Tensor:
    """1 where an example's noise level (0 clean .. 1 noise) lies within first..last, else 0 [B]."""
    return ((fraction >= first) & (fraction <= last)).float()
