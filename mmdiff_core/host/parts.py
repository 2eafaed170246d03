"""Which part of the latents a model call draws: which images of the batch, and where on them.

A sampler's model call need not hold the whole batch at its whole size. Context windows draw some
of the images; tiles, and windows in height or width, draw a part of each one, and several tiles
may come in one call. Weights per image, regions and attention maps must follow, and where nothing
says which part it is, a sentence does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import comfy.conds
import torch
from torch import Tensor

from ..regions.attention_bias import Area
from .conditioning import KEY, Row, quote_names

PLACES = "mmdiff_places"
SHIFT = 1 << 12  # a position is y * SHIFT + x, exact in float32

# function wrappers, by the name of their class: those that roll the latent before they cut it, and
# its conds otherwise than it, and TiledDiffusion's, which cut conds of every size but the latent's
ROLLING = ("SpotDiffusion",)
OTHER_SIZES = ("MultiDiffusion", "MixtureOfDiffusers")

SPLIT = (
    "MM-Diff: the model was called with {batch} rows, but the conditioning describes {rows}; a "
    "node between sampler and model splits the batch so that its rows can no longer be matched"
)
NO_IMAGES = (
    "MM-Diff: a node gives the model {count} of {images} images without saying which, so the "
    "weights per image, regions or attention maps of {names} cannot follow; use a node that sets "
    "ComfyUI's context_window, or remove weights per image, Find Regions and Watch Attention"
)
NO_PLACE = (
    "MM-Diff: a node gives the model a part of the latent ({part}) without saying which part, so "
    "the masks, boxes, found regions or attention maps of {names} cannot be placed on it; remove "
    "that node, or the masks, boxes, Find Regions and Watch Attention"
)


@dataclass(frozen=True)
class Latents:
    """The latents of a sampling: how many images, and their height and width."""

    images: int
    size: tuple[int, int]


class Places(comfy.conds.CONDRegular):
    """A cond entry that says where every latent position is, float32 [1 1 nH nW] on the CPU, each
    position `times` (n) times in both directions.

    Whoever cuts the latent into tiles cuts the conds of its size along with it, so a tile's entry
    says where the tile is. It never reaches the model: `place_rows` takes it out.
    """

    def __init__(self, cond: Tensor, times: int = 1):
        super().__init__(cond)
        self.times = times

    def process_cond(self, batch_size: int, area=None, **kwargs) -> Places:
        part = self.cond
        if area is not None:
            height, width, top, left = (int(side) * self.times for side in area)
            part = part[..., top : top + height, left : left + width]
        return Places(part.expand(batch_size, -1, -1, -1), self.times)

    def concat(self, others: Sequence[Places]) -> Tensor:
        return torch.cat([self.cond, *(other.cond for other in others)])


def add_places(conds: Mapping[str, list[dict]], size: tuple[int, int], wrapper: object) -> None:
    """Let every cond of a run say where its positions are. RuntimeError for a `wrapper` whose
    tiles cannot be placed by that."""
    name = type(wrapper).__name__
    if name in ROLLING:
        raise RuntimeError(
            f"MM-Diff: {name} shifts the latent before it cuts tiles, so masks, boxes, found "
            "regions and attention maps cannot be placed on them; use MultiDiffusion or Mixture of "
            "Diffusers, or remove the masks, boxes, Find Regions and Watch Attention"
        )
    times = 2 if name in OTHER_SIZES else 1
    rows, columns = (torch.arange(side * times) // times for side in size)
    numbers = (rows[:, None] * SHIFT + columns).float()[None, None]
    for kind in conds:
        for i, cond in enumerate(conds[kind]):
            model_conds = {**cond["model_conds"], PLACES: Places(numbers, times)}
            conds[kind][i] = {**cond, "model_conds": model_conds}


def place_rows(x: Tensor, kwargs: dict) -> dict:
    """The keyword arguments of a model call on x [B C h w], its `Places` read into its rows."""
    places: Tensor | None = kwargs.get(PLACES)
    if places is None:
        return kwargs
    rest = {key: value for key, value in kwargs.items() if key != PLACES}
    rows = repeat_rows(rest.get(KEY, ()), len(places))
    times = max(1, places.shape[-1] // x.shape[-1])
    return {**rest, KEY: tuple(_placed(rows, places, times))}


def _placed(rows: Sequence[Row], places: Tensor, times: int) -> Iterator[Row]:
    """The rows of a call, each on the part of the latent that its `places` [1 nH nW] name."""
    height, width = (side // times for side in places.shape[-2:])
    # a tile need not begin at the first of the `times` entries of its first position
    corners = ((0, 0), (0, -times), (-times, 0), (-times, -times))
    at = torch.stack([places[:, 0, y, x] for y, x in corners], 1).tolist()
    sides = ((0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1))
    for row, numbers in zip(rows, at, strict=True):
        top, left = divmod(int(numbers[0]), SHIFT)
        whole = [(top + y) * SHIFT + left + x for y, x in sides]
        if row.prompt is not None and numbers != whole:
            raise no_place(row, (height, width))
        yield replace(row, area=(height, width, top, left), placed=True)


def repeat_rows(rows: tuple[Row, ...], batch: int) -> tuple[Row, ...]:
    """The rows of a call with `batch` rows: tiles repeat whole conds in order. RuntimeError where
    they are no multiple."""
    times, left = divmod(batch, max(1, len(rows)))
    if left or not times:
        raise RuntimeError(SPLIT.format(batch=batch, rows=len(rows)))
    return rows * times


def locate(
    rows: tuple[Row, ...], x: Tensor, latents: Latents, options: Mapping, watched: bool
) -> tuple[Row, ...]:
    """The rows of a model call on x [B C h w], each with its image's number in the whole batch and
    the area it covers of the whole latent, for those that ask; the others forget both, so that more
    of them are drawn together. RuntimeError where nothing says which part it is."""
    found = []
    for row in repeat_rows(rows, len(x)):
        if row.prompt is None:
            found.append(row)
            continue
        image = area = None
        if watched or row.prompt.counts_images:
            image = image_of(row, latents, options)
        if watched or row.prompt.has_regions:
            area = area_of(row, tuple(x.shape[-2:]), latents.size, options)
        found.append(Row(row.prompt, area, image))
    return tuple(found)


def image_of(row: Row, latents: Latents, options: Mapping) -> int:
    """The number of a row's image in the latent batch."""
    for window in windows_of_images(options):
        if len(window) == row.images:
            return int(window[row.image])
    if row.images == latents.images:
        return row.image
    raise RuntimeError(
        NO_IMAGES.format(
            count=row.images, images=latents.images, names=quote_names(row.prompt.subjects)
        )
    )


def windows_of_images(options: Mapping) -> Iterator[Sequence[int]]:
    """The numbers of a call's images, by whoever draws the batch in parts: the host's context
    windows, and AnimateDiff-Evolved's."""
    dim, indices = window_of(options)
    if dim == 0 and indices:
        yield indices
    frames = options.get("ad_params")
    if isinstance(frames, Mapping) and frames.get("sub_idxs") is not None:
        yield frames["sub_idxs"]


def window_of(options: Mapping) -> tuple[int, list[int]]:
    """The axis [B C H W] that the host's context windows cut, and the indices along it that a call
    holds; none without windows. Newer hosts put the index before a window's first in front of it
    (`causal_window_fix`) and drop what is drawn for it."""
    window = options.get("context_window")
    indices = list(getattr(window, "index_list", None) or ())
    before = getattr(window, "causal_anchor_index", None)
    if indices and before is not None and before >= 0:
        indices = [before, *indices]
    return getattr(window, "dim", 0), indices


def area_of(
    row: Row, size: tuple[int, int], latent: tuple[int, int], options: Mapping
) -> Area | None:
    """The part of the latent that a row of a call at this size covers; None = all of it."""
    height, width, top, left = row.area or (*latent, 0, 0)
    dim, indices = window_of(options)
    # a context window along height or width
    if dim in (2, 3) and indices and indices == list(range(indices[0], indices[0] + len(indices))):
        if row.placed:
            raise no_place(row, size)
        if row.area is None:
            height, width = (len(indices), width) if dim == 2 else (height, len(indices))
        top, left = (top + indices[0], left) if dim == 2 else (top, left + indices[0])
    if (height, width) != size:
        raise no_place(row, size)
    area = height, width, top, left
    return None if area == (*latent, 0, 0) else area


def no_place(row: Row, size: tuple[int, int]) -> RuntimeError:
    part = f"{size[1]} x {size[0]}"
    return RuntimeError(NO_PLACE.format(part=part, names=quote_names(row.prompt.subjects)))
