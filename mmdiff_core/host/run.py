"""What one sampling run makes before its loop, and what one model call and one layer read of it.

    Run         the prompts' states, when the image branch acts, what the latents are
    ModelCall   which rows of one call of the model show which subjects
    LayerView   what one layer of that call needs to put a region on its own grid

All of it lives in the run's transformer_options and is gone with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..bases import Slot
from ..method.attention import Router
from ..method.subjects import NOUNS, SELF, TOKENS, PromptSubject, count_tokens
from ..regions.attention_bias import Area, crop_to_grid, noun_bias, shares, token_bias
from ..regions.self_attention import ApartColumns, apart, exclusive
from .conditioning import BoundPrompt
from .finder import Finder
from .kept_text import KeptText
from .layer_attention import Columns, Watcher
from .parts import Latents
from .progress import Window


@dataclass(frozen=True, eq=False)
class LayerView:
    """What one layer reads for one group of rows.

    grid    height and width of the layer's positions
    latent  height and width of the whole latent
    area    the part of it that the rows' cond covers, or None = all
    first   number of the first row in the latent batch
    rows    number of rows
    regions the regions found so far, of each subject and of all [images S+1 h w], or None
    """

    grid: tuple[int, int]
    latent: tuple[int, int]
    area: Area | None
    first: int
    rows: int
    regions: Tensor | None


class Places(NamedTuple):
    """The positions of one layer, as a side of the constraint sees them.

    shares  how far each is open to each subject [1|B S P]
    gate    how far it is open to any by the given masks alone [1 1 P 1]
    inside  how far it is inside any found region [B 1 P]; None where none was looked for
    """

    shares: Tensor
    gate: Tensor
    inside: Tensor | None


@dataclass(frozen=True, eq=False)
class Side:
    """Which subjects a side of the constraint (tokens, nouns in the text, or self-attention) holds,
    and to what."""

    held: tuple[bool, ...]
    masks: tuple[Tensor | None, ...]  # of the held ones, on the device
    any: bool
    given: bool  # whether one of them has a mask

    @classmethod
    def of(cls, held: Sequence[bool], masks: Sequence[Tensor | None]) -> Side:
        kept = tuple(mask if hold else None for mask, hold in zip(masks, held, strict=True))
        return cls(tuple(held), kept, any(held), any(mask is not None for mask in kept))

    @classmethod
    def each(cls, subjects: Sequence[PromptSubject], device: torch.device) -> dict[str, Side]:
        """The sides of a prompt, by name: made once a run, for the loop asks for them at every
        layer and step."""
        regions = [s.region for s in subjects]
        masks = [None if r.mask is None else r.mask.to(device) for r in regions]
        held = zip(
            *((r.hold_tokens, r.hold_nouns, r.bound_self_attention) for r in regions), strict=True
        )
        tokens, nouns, own = (cls.of(each, masks) for each in held)
        return {TOKENS: tokens, NOUNS: nouns, SELF: own}

    def limited(self, found: bool) -> list[int]:
        """The held subjects that have a region: a mask, or where there are `found` ones all."""
        pairs = enumerate(zip(self.held, self.masks, strict=True))
        return [s for s, (hold, mask) in pairs if hold and (found or mask is not None)]

    def places(self, view: LayerView, device: torch.device) -> Places:
        """A layer's positions, by masks and found regions."""
        open_to = shares(self.masks, view.grid, view.latent, view.area, device)
        gate = open_to.amax(1)[:, None, :, None]
        if view.regions is None:
            return Places(open_to, gate, None)
        own = view.regions[view.first : view.first + view.rows]
        own = crop_to_grid(own, view.grid, view.latent, view.area).flatten(2)
        each, inside = own[:, :-1].unbind(1), own[:, -1:]
        found = [r if hold else torch.ones_like(r) for r, hold in zip(each, self.held, strict=True)]
        return Places(open_to * torch.stack(found, 1), gate, inside)


@dataclass(frozen=True, eq=False)
class PromptState:
    """One bound prompt during one run: K [1 H N D] and V by slot, the subjects' weights in V ([B H
    N D] where they differ between the images of a batch); routers by slot, where the adapter has
    them."""

    prompt: BoundPrompt
    keys: dict[Slot, tuple[Tensor, Tensor]]
    sides: Mapping[str, Side]  # by TOKENS, NOUNS, SELF
    # of their nouns and tokens, where the prompt knows its nouns
    columns: Columns | None = None
    finder: Finder | None = None
    routers: Mapping[Slot, Router] = field(default_factory=dict)
    made: dict[tuple, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def on(self, device: torch.device) -> PromptState:
        """The same on another device."""
        keys = {slot: (k.to(device), v.to(device)) for slot, (k, v) in self.keys.items()}
        columns = None if self.columns is None else self.columns.to(device)
        finder = None if self.finder is None else self.finder.on(device, columns)
        sides = Side.each(self.prompt.subjects, device)
        routers = {slot: router.to(device) for slot, router in self.routers.items()}
        return PromptState(self.prompt, keys, sides, columns, finder, routers)

    def regions(self, sigmas: Tensor) -> Tensor | None:
        """The found regions [images S+1 h w] at this sigma, where they are looked for and settled.
        The sigma is read by whoever needs it alone: a compiled model would be compiled anew for
        each."""
        return None if self.finder is None else self.finder.regions(sigmas)

    @property
    def holds_nouns(self) -> bool:
        return self.columns is not None and self.sides[NOUNS].any

    @property
    def bounds_self_attention(self) -> bool:
        """Whether two subjects or more have regions between which nothing is attended to."""
        return len(self.sides[SELF].limited(self.finder is not None)) > 1

    def token_region(self, view: LayerView, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Bias [1|B 1 P N] and gate [1 1 P 1] that hold the subjects' tokens to their regions; made
        once per grid."""
        tokens = count_tokens(self.prompt.subjects)

        def make(places: Places) -> tuple[Tensor, Tensor]:
            return token_bias(places.shares, tokens, like.dtype), places.gate.to(like.dtype)

        return self._made(TOKENS, view, like, make)

    def noun_region(self, view: LayerView, like: Tensor) -> Tensor | None:
        """Bias [1|B 1 P T] that holds the subjects' nouns to their regions; T as the prompt was
        encoded."""

        def make(places: Places) -> tuple[Tensor, None]:
            return noun_bias(places.shares, self.columns.nouns, like.dtype), None

        return self._made(NOUNS, view, like, make)[0]

    def self_region(self, view: LayerView, like: Tensor, width: int) -> ApartColumns | None:
        """What keeps self-attention with heads of this width inside the subjects' regions, or None
        where fewer than two have one."""

        def make(places: Places) -> tuple[ApartColumns | None, None]:
            limited = self.sides[SELF].limited(view.regions is not None)
            if len(limited) < 2:
                return None, None
            alone = exclusive(torch.stack([places.shares[:, s] for s in limited], 1))
            alone = alone if places.inside is None else alone * places.inside
            return ApartColumns.of(apart(alone), width, like.dtype), None

        return self._made(SELF, view, like, make, width)[0]

    def _made(
        self, what: str, view: LayerView, like: Tensor, make: Callable, width: int = 0
    ) -> tuple:
        found, side = view.regions, self.sides[what]
        if not (side.given if found is None else side.any):
            return None, None
        rows = found is not None and (view.first, view.rows)
        key = what, width, view.grid, view.area, like.dtype, like.device, rows
        if self.made.get(key, (None,))[0] is not found or key not in self.made:
            self.made[key] = found, make(side.places(view, like.device))
        return self.made[key][1]


@dataclass(frozen=True, eq=False)
class Run:
    """What one sampling run of one application made before its loop.

    states      by id of the bound prompt; the state holds the prompt, so ids stay taken
    copies      of the states, for each device of a multi-GPU sampling
    uncalled    slots that another pack holds and where ours was not called yet, and its name
    texts       what is kept of the text, where it may be
    """

    states: dict[int, PromptState]
    copies: dict[torch.device, dict[int, PromptState]]
    window: Window
    latents: Latents
    uncalled: dict[Slot, str]
    texts: KeptText | None = None

    @property
    def bounds_self_attention(self) -> bool:
        return any(state.bounds_self_attention for state in self.states.values())

    def __deepcopy__(self, memo: dict) -> Run:
        return self


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring rows of one model call that show the same subjects.

    factor      1 or 0: whether the image branch acts at this sigma
    image       number of the first row in the latent batch, where weights differ between images
    regions     the found regions [images S+1 h w], once they are settled
    watchers    who records attention during this call
    """

    start: int
    stop: int
    area: Area | None
    latent: tuple[int, int]
    factor: float | Tensor
    image: int | None
    state: PromptState
    regions: Tensor | None = None
    watchers: tuple[Watcher, ...] = ()

    def acting(self, x: Tensor) -> Tensor:
        """x where the image branch acts at this sigma, else 0; for what knows it on the device."""
        return x if isinstance(self.factor, float) else x * self.factor.to(x.dtype)

    def view(self, grid: tuple[int, int]) -> LayerView:
        return LayerView(
            grid, self.latent, self.area, self.image or 0, self.stop - self.start, self.regions
        )


@dataclass(frozen=True, eq=False)
class ModelCall:
    """One call of the model: its groups, its number of rows, and the run's slots that are still
    uncalled."""

    groups: tuple[Group, ...]
    rows: int
    uncalled: dict[Slot, str]
