"""A run with the text's K and V kept, beside the same run where every step makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from mmdiff_core.host.apply import apply

from support import make
from support.scene import BOTH, SIGMAS

LIKE = "sd15"  # fewer layers than SDXL, so more graphs
LAYERS, STEPS, TOKENS = 16, len(SIGMAS) - 1, 77
ONCE, EVERY_STEP = 2 * LAYERS, 2 * LAYERS * STEPS


def projections(model) -> list[torch.nn.Module]:
    unet = model.model.diffusion_model
    attns = [m.attn2 for m in unet.modules() if getattr(m, "attn2", None) is not None]
    return [layer for attn in attns for layer in (attn.to_k, attn.to_v)]


@contextmanager
def counted(model) -> Iterator[list[int]]:
    """Rows of every text that a layer's own code projects."""
    layers, rows = set(projections(model)), []
    kind = type(next(iter(layers)))
    own = kind.forward

    def forward(self, x, *args, **kwargs):
        if self in layers and x.shape[1] % TOKENS == 0:
            rows.append(len(x))
        return own(self, x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", forward)
        yield rows


def own_texts(conditioning: list) -> list:
    """The same with copies of the texts: a neighbour may write into them."""
    return [[text.clone(), options] for text, options in conditioning]


def drawn(scene, make_model: Callable, keep: bool, *prompts, **options):
    """(image, number of projections) of one run on texts of its own, with the text kept or not."""
    positive, negative = (*prompts, scene.negative)[:2]
    own = [own_texts(side) for side in (positive, negative)]
    ours = apply(make.narrow_model(LIKE), scene.adapter, BOTH, keep_text=keep)
    model = make_model(ours)
    with counted(model) as rows:
        return scene.sample(model, *own, **options), len(rows)


def compare(scene, make_model, *prompts, **options) -> tuple[int, int]:
    """Numbers of projections without and with kept text, of two runs with the same bits."""
    expected, plain = drawn(scene, make_model, False, *prompts, **options)
    found, kept = drawn(scene, make_model, True, *prompts, **options)
    assert torch.equal(found, expected) and torch.isfinite(found).all()
    return plain, kept


def itself(model):
    return model
