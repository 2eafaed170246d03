"""Nodes that hand the model parts of what the sampler has, as ComfyUI and other packs do: context
windows, tiles, and regions inside the layers.
"""

from __future__ import annotations

import random

import comfy.context_windows as host_windows
import comfy.sample
import comfy.samplers
import torch


class Windows(host_windows.IndexListContextHandler):
    """ComfyUI's context windows. The step, which 0.3.75 cannot find for a batch, is not asked."""

    def set_step(self, timestep, model_options):
        pass


def with_windows(
    model,
    schedule: str,
    length: int,
    overlap: int = 0,
    stride: int = 1,
    dim: int = 0,
    one_before: bool = True,
):
    """`one_before`: newer hosts draw the image, or the row or column, before a window along with
    it, and drop it."""
    windowed = model.clone()
    windowed.model_options["context_handler"] = handler = Windows(
        host_windows.get_matching_context_schedule(schedule),
        host_windows.get_matching_fuse_method("pyramid"),
        length,
        overlap,
        stride,
        dim=dim,
    )
    handler.causal_window_fix = one_before
    return windowed


class Tiles:
    """A function wrapper that draws the latent in tiles, several to a call, tile by tile, with the
    conds repeated in order; tensors as large as the latent are cut along with it.
    """

    def __init__(self, size: tuple[int, int], per_call: int):
        self.size, self.per_call, self.calls = size, per_call, []

    def __call__(self, model_function, call: dict) -> torch.Tensor:
        x, count = call["input"], len(call["input"])
        cuts = self.cuts(x)
        out = torch.zeros_like(x)
        for i in range(0, len(cuts), self.per_call):
            some = cuts[i : i + self.per_call]
            parts = torch.cat([x[cut] for cut in some])
            conds = {k: self.cut_along(v, x, some) for k, v in call["c"].items()}
            self.calls.append(len(parts))
            drawn = model_function(parts, call["timestep"].repeat(len(some)), **conds)
            for cut, part in zip(some, drawn.split(count), strict=True):
                out[cut] = part
        return out

    def cuts(self, x: torch.Tensor) -> list[tuple[slice, ...]]:
        height, width = self.size
        everything = slice(None)
        return [
            (everything, everything, slice(top, top + height), slice(left, left + width))
            for top in range(0, x.shape[-2], height)
            for left in range(0, x.shape[-1], width)
        ]

    @staticmethod
    def cut_along(value, x: torch.Tensor, cuts: list) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        if value.ndim == x.ndim and value.shape[-2:] == x.shape[-2:]:
            return torch.cat([value[cut] for cut in cuts])
        return value.repeat(len(cuts), *[1] * (value.ndim - 1))


class SilentTiles(Tiles):
    """The same, but conds as large as the latent are squeezed into the tile, so where the tile is
    cannot be known.
    """

    @staticmethod
    def cut_along(value, x: torch.Tensor, cuts: list) -> object:
        if isinstance(value, torch.Tensor) and value.ndim != x.ndim:
            return value.repeat(len(cuts), *[1] * (value.ndim - 1))
        return None if isinstance(value, torch.Tensor) else value


class MultiDiffusion(Tiles):
    """By its name, and as it does: conds that are larger or smaller than the latent are cut along
    with it, those of its size are not expected.
    """

    @staticmethod
    def cut_along(value, x: torch.Tensor, cuts: list) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        if value.ndim == x.ndim:
            times = value.shape[-1] / x.shape[-1]
            if times == 1:
                raise AttributeError("'int' object has no attribute 'slicer'")
            return torch.cat([value[_times(cut, times)] for cut in cuts])
        return value.repeat(len(cuts), *[1] * (value.ndim - 1))


def _times(cut: tuple[slice, ...], times: float) -> tuple[slice, ...]:
    """A cut [B C H W] on a grid that is so many times as fine."""
    fine = (slice(int(side.start * times), int(side.stop * times)) for side in cut[2:])
    return (*cut[:2], *fine)


class SpotDiffusion(Tiles):
    """By its name: the one whose latent is shifted before it is cut."""


def with_tiles(model, tiles: Tiles):
    tiled = model.clone()
    tiled.set_model_unet_function_wrapper(tiles)
    return tiled


def with_regions_in_layers(model, texts: list[torch.Tensor]):
    """Attention Couple: the cond's rows are repeated inside the layer, once for each region's text,
    and mixed again behind it.
    """
    kinds: dict = {}

    def repeat(q, k, v, extra_options):
        chunks = extra_options["cond_or_uncond"]
        size = len(q) // len(chunks)
        qs, ks = [], []
        for i, kind in enumerate(chunks):
            own = slice(i * size, (i + 1) * size)
            regions = texts if kind == 0 else []
            qs += [q[own]] * (1 + len(regions))
            ks += [k[own], *(text.expand(size, -1, -1).to(k) for text in regions)]
        kinds["chunks"], kinds["size"] = chunks, size
        return torch.cat(qs), torch.cat(ks), torch.cat(ks)

    def mix(out, extra_options):
        mixed, at = [], 0
        for kind in kinds["chunks"]:
            count = 1 + (len(texts) if kind == 0 else 0)
            part = out[at : at + count * kinds["size"]]
            mixed.append(part.unflatten(0, (count, -1)).mean(0))
            at += len(part)
        return torch.cat(mixed)

    coupled = model.clone()
    coupled.set_model_attn2_patch(repeat)
    coupled.set_model_attn2_output_patch(mix)
    return coupled


def noise_of(images: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Another noise for every image."""
    return torch.randn(images, 4, *size, generator=torch.Generator().manual_seed(seed))


def sample(
    model,
    noise: torch.Tensor,
    positive: list,
    negative: list,
    sigmas: torch.Tensor,
    cfg: float = 2.0,
    sampler: str = "euler",
    latent: torch.Tensor | None = None,
    callback=None,
) -> torch.Tensor:
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object(sampler),
        sigmas,
        positive,
        negative,
        torch.zeros_like(noise) if latent is None else latent,
        disable_pbar=True,
        callback=callback,
        seed=0,
    )


def random_mask(size: tuple[int, int], draw: random.Random) -> torch.Tensor:
    """A box, one value for each latent position."""
    mask = torch.zeros(size)
    top, left = draw.randrange(size[0]), draw.randrange(size[1])
    mask[top : draw.randint(top + 1, size[0]), left : draw.randint(left + 1, size[1])] = 1
    return mask
