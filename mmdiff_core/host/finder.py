"""Regions of a prompt's subjects, found from their attention maps while sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..bases import Slot
from ..method.subjects import FindRegions, PromptSubject
from ..regions.attention_maps import Canvas, canvas_grid, find_places
from .layer_attention import Columns, LayerAttention, canvas_area
from .parts import Latents
from .progress import NEAR, LateAnswer, read_sigma

FADE = 0.7  # how much earlier sigmas count after each one while found regions are updated


@dataclass(eq=False)
class Finder:
    """Regions of one prompt's subjects during one run: looked for above a sigma, then held, or
    followed.

    bound       the sigma at or below which they hold. The first sigma of a run that continues no
                other is looked at in any case
    shares      region of each subject, and how far a place is inside any [images S+1 h w], in
                0..1, once they were found
    first       the run's first sigma; inf where this continues an earlier run
    found_at    the sigma of the newest regions
    held        on a GPU: whether they were found, as a tensor [1]; `late`: the same, as soon as
                the host knows
    """

    plan: FindRegions
    bound: float
    slots: frozenset[Slot]
    columns: Columns
    canvas: Canvas
    shares: Tensor | None = None
    first: float | Tensor | None = None
    found_at: float | Tensor = -1.0
    held: Tensor | None = None
    late: LateAnswer = field(default_factory=LateAnswer)

    def on(self, device: torch.device, columns: Columns) -> Finder:
        """A finder of its own for another device."""
        shares = None if self.shares is None else self.shares.to(device, copy=True)
        canvas = self.canvas.copy_to(device)
        return Finder(self.plan, self.bound, self.slots, columns, canvas, shares, self.first)

    def looks(self, sigmas: Tensor) -> float | Tensor:
        """1 where regions are still looked for in a call at this sigma, else 0."""
        sigma = self._begin(sigmas)
        if self.plan.update:
            return 1.0
        if isinstance(sigma, float):
            return float(self.shares is None and (sigma > self.bound or sigma == self.first))
        if self.late.said:
            return 0.0
        return ((sigma > self.bound) | (sigma == self.first)) & ~self._found(sigma)

    def look(self, layer: LayerAttention, weight: float | Tensor = 1.0) -> None:
        text, image = self.columns.maps(layer)
        area = canvas_area(self.canvas, layer.area, layer.latent)
        self.canvas.add(text, image, layer.first, area, weight)

    def regions(self, sigmas: Tensor) -> Tensor | None:
        """Region of each subject and of all [images S+1 h w] in 0..1 at this sigma, or None where
        all are free. Made once, or, where they follow the maps, once a sigma."""
        sigma = self._begin(sigmas)
        if not isinstance(sigma, float):
            return self._regions_on_device(sigma)
        if sigma > self.bound or sigma == self.first:
            return None
        if self.shares is None or (self.plan.update and self.found_at != sigma):
            self.shares = self._find()
            self.canvas.fade(FADE)
            self.found_at = sigma
        return self.shares

    def _regions_on_device(self, sigma: Tensor) -> Tensor:
        """The same where no number may be read back: 1 everywhere for as long as all are free."""
        settled = (sigma <= self.bound) & (sigma != self.first)
        if self.late.said and not self.plan.update:
            return torch.where(settled, self.shares, torch.ones_like(self.shares))
        found = self._found(sigma)
        stays = found & (sigma == self.found_at) if self.plan.update else found
        renewed = settled & ~stays
        shares = self._find()
        if self.shares is not None:
            shares = torch.where(renewed, shares, self.shares)
        self.canvas.fade(torch.where(renewed, FADE, 1.0))
        self.shares, self.held, self.found_at = shares, found | settled, sigma
        self.late.ask(self.held)
        return torch.where(settled, shares, torch.ones_like(shares))

    def _found(self, sigma: Tensor) -> Tensor:
        """On a GPU: whether there are regions by now."""
        if self.held is None:
            return torch.full_like(sigma, self.shares is not None, dtype=torch.bool)
        return self.held

    def _begin(self, sigmas: Tensor) -> float | Tensor:
        sigma = read_sigma(sigmas)
        self.first = sigma if self.first is None else self.first
        return sigma

    def _find(self) -> Tensor:
        return find_places(*self.canvas.mean(), self.plan.sharpness, self.plan.image_share)


@dataclass(frozen=True, eq=False)
class FinderLook:
    """A finder in one model call, and how much what it sees there counts."""

    finder: Finder
    weight: float | Tensor

    @property
    def slots(self) -> frozenset[Slot]:
        return self.finder.slots

    def look(self, layer: LayerAttention) -> None:
        self.finder.look(layer, self.weight)


def make_finder(
    subjects: Sequence[PromptSubject],
    columns: Columns,
    sampling,
    latents: Latents,
    slots: frozenset[Slot],
) -> Finder | None:
    """A finder where the prompt's subjects ask for one and there are several to tell apart."""
    plan = next((s.region.find for s in subjects if s.region.find is not None), None)
    if plan is None or len(subjects) < 2:
        return None
    grid, device = canvas_grid(latents.size), columns.nouns.device
    canvas = Canvas.blank(latents.images, len(subjects), grid, device)
    bound = float(sampling.percent_to_sigma(plan.settle)) * NEAR
    return Finder(plan, bound, slots, columns, canvas)


@dataclass(frozen=True, eq=False)
class Stopped:
    """Where a sampling stopped before its end: its latents, their sigma, and what was found."""

    latents: Tensor
    sigma: float
    finder: Finder


class Continuation:
    """What one sampling found, for the next one that goes on from its very latents.

    Kept by the prompt, for as long as the prompt lives; a sampling of anything else starts anew.
    """

    def __init__(self):
        self._stopped: WeakKeyDictionary = WeakKeyDictionary()

    def keep(self, prompt, finder: Finder, latents: Tensor, sigma: float) -> None:
        """A run ended at `sigma` with `latents`."""
        self._stopped.pop(prompt, None)
        if sigma > 0:
            host = torch.device("cpu")
            found = finder.on(host, finder.columns.to(host))
            self._stopped[prompt] = Stopped(latents.detach().float().cpu(), sigma, found)

    def resume(self, prompt, finder: Finder, latents: Tensor | None, sigma: float) -> Finder:
        """`finder` as a run from `latents` at `sigma` needs it: what the run before it found, where
        this goes on from there."""
        before: Stopped | None = self._stopped.get(prompt)
        if before is None or latents is None or sigma > before.sigma * NEAR:
            return finder
        if before.finder.plan != finder.plan or not _same(before.latents, latents):
            return finder
        taken = before.finder.on(finder.canvas.text.device, finder.columns)
        taken.first, taken.bound = math.inf, finder.bound
        return taken


def _same(kept: Tensor, latents: Tensor) -> bool:
    """Whether latents are the kept ones, but for the rounding on their way between two samplers."""
    if kept.shape != latents.shape:
        return False
    difference = (kept - latents.detach().float().cpu()).abs().max()
    return bool(difference <= 4e-3 * kept.abs().max())
