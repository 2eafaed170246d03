"""What an encoder said of images is kept, for tests that show it the same ones again."""

from __future__ import annotations

from torch import Tensor

from mmdiff_core.small_world.score import Embed


def remembered(embed: Embed) -> Embed:
    """The same encoder; images of the same bytes are not shown to it twice."""
    kept: dict[tuple, Tensor] = {}

    def remember(images: Tensor) -> Tensor:
        key = (tuple(images.shape), images.numpy().tobytes())
        if key not in kept:
            kept[key] = embed(images)
        return kept[key]

    return remember
