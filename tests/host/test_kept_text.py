"""The text's K and V are made once a run, the image is the same bit by bit, and nothing is left."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import comfy.patcher_extension
import nodes as host_nodes
import pytest
import torch

from mmdiff_core.host import kept_text
from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import carry
from mmdiff_core.host.kept_text import Tracked

from support import make
from support.kept_text import (
    EVERY_STEP,
    ONCE,
    TOKENS,
    compare,
    counted,
    drawn,
    itself,
)
from support.scene import BOTH, half_masks
from support.splitters import Tiles, with_tiles, with_windows

LIKE = "sd15"  # fewer layers than SDXL, so more graphs
Wrappers = comfy.patcher_extension.WrappersMP
pytestmark = pytest.mark.usefixtures("as_the_host_executes")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_runs_text_is_projected_once_and_the_picture_is_bit_identical(scene, cfg, batch):
    assert compare(scene, itself, scene.bound(), cfg=cfg, batch=batch) == (EVERY_STEP, ONCE)


def test_a_text_is_projected_once_on_70_layers_too(request):
    scene = request.getfixturevalue("scene70")
    model = apply(scene.model, scene.adapter, BOTH)
    plain = apply(scene.model, scene.adapter, BOTH, keep_text=False)
    with counted(model) as rows:
        found = scene.sample(model, scene.bound())
    assert len(rows) == 140 and torch.equal(found, scene.sample(plain, scene.bound()))


@pytest.fixture(scope="module")
def scene70():
    from support.scene import Scene

    return Scene("sdxl")


# ---------------------------------------------------------------- which texts a call holds


def in_areas(scene) -> list:
    areas = host_nodes.ConditioningSetArea()
    left = areas.append(scene.bound(), 64, 128, 0, 0, 1.0)[0]
    return left + areas.append(scene.another_prompt(), 64, 128, 64, 0, 1.0)[0]


def in_masks(scene) -> list:
    texts = zip((scene.bound(), scene.another_prompt()), half_masks(16), strict=True)
    masked = host_nodes.ConditioningSetMask()
    return [c for t, m in texts for c in masked.append(t, m[None], "default", 1.0)[0]]


def in_turn(scene) -> list:
    ranged = host_nodes.ConditioningSetTimestepRange()
    first = ranged.set_range(scene.bound(), 0.0, 0.3)[0]
    return first + ranged.set_range(scene.another_prompt(), 0.3, 1.0)[0]


def for_each_image(scene) -> list:
    """One cond with a text of its own for each image of a batch."""
    (text, options), *_ = scene.bound()
    return [[torch.cat([text, text * 0.5]), options]]


def longer(scene) -> list:
    (text, options), *_ = scene.bound()
    return [[torch.cat([text, text * 0.5], 1), options]]


SEVERAL = {
    "areas": (in_areas, 3),
    "masks": (in_masks, 1),
    "in turn": (in_turn, 2),
    "a text for each image": (for_each_image, 1),
    "longer than the negative one": (longer, 1),
}


@pytest.mark.parametrize("which", SEVERAL)
def test_several_prompts_are_each_projected_once(scene, which):
    positive, most = SEVERAL[which]
    plain, kept = compare(scene, itself, positive(scene), size=(16, 16), batch=2)
    assert kept <= most * ONCE < plain


def test_conds_that_run_in_calls_of_their_own_are_kept_apart(scene, monkeypatch):
    kind = type(scene.model.model)
    memory = lambda self, shape, **kw: 0 if shape[0] == 1 else 1e18  # noqa: E731
    monkeypatch.setattr(kind, "memory_required", memory)
    assert compare(scene, itself, scene.bound()) == (2 * EVERY_STEP, 2 * ONCE)


def test_context_windows_draw_the_same(scene):
    def windowed(model):
        return with_windows(model, "standard_static", 2, 1)

    compare(scene, windowed, scene.bound(), batch=4)


def test_tiles_draw_the_same(scene):
    compare(scene, lambda model: with_tiles(model, Tiles((8, 8), 2)), scene.bound(), size=(16, 16))


# ---------------------------------------------------------------- what is left behind, and memory


@dataclass
class Seen:
    """What a run kept, and the most it held."""

    texts: weakref.ref | None = None
    most: int = 0


def watching(model, seen: Seen, fails_at: int | None = None):
    steps = []

    def wrapper(executor, x, timestep, model_options, seed):
        run = next(v for v in model_options["transformer_options"].values() if hasattr(v, "texts"))
        out = executor(x, timestep, model_options, seed)
        steps.append(run.texts.bytes)
        seen.texts, seen.most = weakref.ref(run.texts), max(steps)
        if len(steps) == fails_at:
            raise InterruptedError("stopped")
        return out

    model.add_wrapper_with_key(Wrappers.PREDICT_NOISE, "watch", wrapper)
    return model


@pytest.mark.parametrize("fails_at", [None, 2])
def test_after_a_run_and_after_an_exception_nothing_is_left(scene, fails_at):
    seen = Seen()
    model = watching(apply(scene.model, scene.adapter, BOTH), seen, fails_at)
    if fails_at is None:
        scene.sample(model, scene.bound())
    else:
        with pytest.raises(InterruptedError):
            scene.sample(model, scene.bound())
    gc.collect()
    assert seen.texts() is None
    assert not any("forward" in vars(layer) for layer in model.model.diffusion_model.modules())


def test_what_is_kept_is_as_large_as_computed_and_does_not_grow_with_the_steps(scene):
    seen = Seen()
    widths = [block.width for block in scene.adapter.config.base.blocks]
    text = 4 * TOKENS * make.CONTEXT
    scene.sample(watching(apply(scene.model, scene.adapter, BOTH), seen), scene.bound())
    assert seen.most == 2 * text + 2 * text + 2 * 2 * 4 * TOKENS * sum(widths)


def test_without_room_the_layers_project_and_the_picture_is_the_same(scene, monkeypatch):
    seen = Seen()
    expected = drawn(scene, itself, False, scene.bound())[0]
    for room in (0, 60_000, 400_000):
        monkeypatch.setattr(kept_text, "MOST_BYTES", room)
        found, count = drawn(scene, lambda m: watching(m, seen), True, scene.bound())
        assert torch.equal(found, expected) and seen.most <= room
        assert ONCE < count <= EVERY_STEP and (count == EVERY_STEP) == (room < 100_000)


def test_a_prompt_without_subjects_is_kept_too(scene):
    plain = carry(scene.plain, None)
    assert compare(scene, itself, plain) == (EVERY_STEP, ONCE)


def test_what_is_written_into_a_tracked_tensor_is_noticed():
    tracked = Tracked.of(torch.rand(2, 3))
    assert tracked.unchanged and not tracked.tensor.is_inference()
    tracked.tensor.view(-1)[:2].zero_()
    assert not tracked.unchanged
