"""Whatever hands the model a part of the batch or of the image: each image comes out as from a run
of its own, or a sentence says why it cannot.

Generated from seeds: batches, windows, tiles, orders of conds, guidance and memory.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import KEY, BoundPrompt, Row, SubjectRows, carry
from mmdiff_core.host.parts import PLACES, Latents, add_places, locate, place_rows
from mmdiff_core.host.watch import Recorder, WatchPlan, watch
from mmdiff_core.method.subjects import FindRegions

from support.scene import BOTH, SIGMAS, close
from support.splitters import (
    MultiDiffusion,
    SilentTiles,
    SpotDiffusion,
    Tiles,
    noise_of,
    random_mask,
    sample,
    with_regions_in_layers,
    with_tiles,
    with_windows,
)
from support.watching import NOUNS, prompt

LIKE = "sd15"  # fewer layers than SDXL, so more graphs
TWO_STEPS = SIGMAS[[0, 2, 4]]
SCHEDULES = ("standard_static", "standard_uniform", "looped_uniform", "batched")


def bound(scene, subjects, text) -> list:
    return carry(text, BoundPrompt(tuple(subjects), scene.adapter.fingerprint, NOUNS))


def random_prompts(scene, draw: random.Random, images: int, size: tuple[int, int]) -> list:
    """One or two combined prompts of one or two subjects with random weights per image, regions
    and order; each as its subjects and its text."""
    texts = [scene.plain, scene.another_prompt()]
    prompts = []
    for text in draw.sample(texts, draw.randint(1, 2)):
        subjects = []
        for subject in draw.sample(scene.subjects, draw.randint(1, 2)):
            weights = tuple(draw.choice((0.0, 0.5, 1.0)) for _ in range(draw.randint(0, images)))
            mask = random_mask(size, draw) if draw.random() < 0.5 else None
            region = {"mask": mask, "bound_self_attention": draw.random() < 0.5}
            subjects.append(replace(subject, per_image=weights).within(**region))
        prompts.append((subjects, text))
    return prompts


def conditioning(scene, prompts, change) -> list:
    entries = []
    for subjects, text in prompts:
        entries += bound(scene, [change(s) for s in subjects], text)
    return entries


def of_image(i: int):
    """What image i of a batch is made from."""
    return lambda s: replace(s, per_image=(), weight=s.weight * s.at_image(i))


def split_memory(draw: random.Random, model, monkeypatch) -> None:
    """Sometimes too little memory for more than one cond in a call."""
    if draw.random() < 0.3:
        monkeypatch.setattr(type(model.model), "memory_required", lambda self, shape, **kw: 1e18)


# ---------------------------------------------------------------- some of the images


@pytest.mark.parametrize("seed", range(12))
def test_every_image_of_a_batch_in_windows_is_that_of_a_run_of_its_own(
    scene, model, seed, monkeypatch
):
    draw = random.Random(seed)
    images, size = draw.randint(3, 8), (8, 8)
    prompts = random_prompts(scene, draw, images, size)
    length = draw.randint(2, images - 1)
    windowed = with_windows(
        model, draw.choice(SCHEDULES), length, draw.randrange(length), draw.choice((1, 2))
    )
    split_memory(draw, model, monkeypatch)
    cfg = draw.choice((1.0, 2.0))
    noise = noise_of(images, size, seed)
    positive = conditioning(scene, prompts, lambda s: s)
    found = sample(windowed, noise, positive, scene.negative, TWO_STEPS, cfg)
    for i in range(images):
        alone = conditioning(scene, prompts, of_image(i))
        expected = sample(model, noise[i : i + 1], alone, scene.negative, TWO_STEPS, cfg)
        assert close(found[i : i + 1], expected), f"image {i}"


def test_the_weights_of_the_last_four_frames_are_their_own(scene, model):
    """The smallest case: 8 frames, windows of 4, weights 1 1 1 1 0 0 0 0."""
    weights = (1.0,) * 4 + (0.0,) * 4
    own = bound(scene, [replace(scene.subjects[0], per_image=weights)], scene.plain)
    noise = noise_of(1, (8, 8), 0).repeat(8, 1, 1, 1)
    windowed = with_windows(model, "batched", 4)
    found = sample(windowed, noise, own, scene.negative, TWO_STEPS)
    for weight, part in ((1.0, found[:4]), (0.0, found[4:])):
        one = bound(scene, [replace(scene.subjects[0], weight=weight)], scene.plain)
        assert close(part, sample(model, noise[:4], one, scene.negative, TWO_STEPS))
    assert not close(found[:4], found[4:])


def test_the_windows_of_animatediff_evolved_say_which_images_they_hold(scene, model):
    def windowed(executor, base, conds, x, timestep, options):
        outs = []
        for first in range(0, len(x), 2):
            numbers = list(range(first, first + 2))
            told = {**options["transformer_options"], "ad_params": {"sub_idxs": numbers}}
            part = {**options, "transformer_options": told}
            outs.append(executor(base, conds, x[numbers], timestep[numbers], part))
        return [torch.cat(parts) for parts in zip(*outs, strict=True)]

    own = bound(scene, [replace(scene.subjects[0], per_image=(1.0, 0.0))], scene.plain)
    noise, framed = noise_of(4, (8, 8), 1), model.clone()
    framed.add_wrapper_with_key("calc_cond_batch", "frames", windowed)
    found = sample(framed, noise, own, scene.negative, TWO_STEPS)
    assert close(found, sample(model, noise, own, scene.negative, TWO_STEPS))


def test_images_without_a_number_are_refused_where_it_matters_and_drawn_where_it_does_not(
    scene, model
):
    def halved(executor, base, conds, x, timestep, options):
        parts = [
            executor(base, conds, x[i : i + 2], timestep[i : i + 2], options)
            for i in range(0, len(x), 2)
        ]
        return [torch.cat(some) for some in zip(*parts, strict=True)]

    noise, half = noise_of(4, (8, 8), 1), model.clone()
    half.add_wrapper_with_key("calc_cond_batch", "halves", halved)
    same = bound(scene, scene.subjects, scene.plain)
    found = sample(half, noise, same, scene.negative, TWO_STEPS)
    assert close(found, sample(model, noise, same, scene.negative, TWO_STEPS))
    own = bound(scene, [replace(scene.subjects[0], per_image=(1.0, 0.0))], scene.plain)
    with pytest.raises(RuntimeError, match="2 of 4 images without saying which.*'ann'"):
        sample(half, noise, own, scene.negative, TWO_STEPS)
    finding = bound(scene, [s.within(find=FindRegions()) for s in scene.subjects], scene.plain)
    with pytest.raises(RuntimeError, match="2 of 4 images"):
        sample(half, noise, finding, scene.negative, TWO_STEPS)


def test_weights_per_image_count_the_images_that_the_sampler_is_given(scene, model):
    """Latent From Batch tells the sampler nothing of the images that it left out."""
    own = bound(scene, [replace(scene.subjects[0], per_image=(1.0, 0.0))], scene.plain)
    noise = noise_of(4, (8, 8), 2)
    first = bound(scene, scene.subjects[:1], scene.plain)
    found = sample(model, noise[2:3], own, scene.negative, TWO_STEPS)
    assert close(found, sample(model, noise[2:3], first, scene.negative, TWO_STEPS))


@pytest.mark.parametrize("seed", range(4))
def test_maps_and_found_regions_of_a_batch_in_windows_are_those_of_runs_of_their_own(
    scene, model, seed
):
    draw = random.Random(seed)
    images, length = 4, draw.randint(2, 3)
    found = tuple(s.within(find=FindRegions(0.4, sharpness=50.0)) for s in scene.subjects)
    noise, own = noise_of(images, (8, 8), seed), prompt(scene, found)

    def run(which, noise):
        recorder = Recorder(WatchPlan(strip=2))
        return sample(watch(which, recorder), noise, own, scene.negative, SIGMAS), recorder.maps[0]

    schedule = draw.choice(SCHEDULES)
    together, maps = run(with_windows(model, schedule, length, draw.randrange(length)), noise)
    for i in range(images):
        alone, expected = run(model, noise[i : i + 1])
        assert close(together[i : i + 1], alone), f"image {i}"
        assert torch.allclose(maps.text[:, i], expected.text[:, 0], atol=1e-4)
        assert torch.allclose(maps.image[:, i], expected.image[:, 0], atol=1e-4)


# ---------------------------------------------------------------- a part of each image


def cropped(mask: torch.Tensor | None, cut: tuple[slice, ...]) -> torch.Tensor | None:
    return None if mask is None else mask[cut[-2:]]


@pytest.mark.parametrize("seed", range(12))
def test_every_tile_is_that_of_a_run_of_its_own_with_its_part_of_the_masks(
    scene, model, seed, monkeypatch
):
    draw = random.Random(100 + seed)
    images, size = draw.randint(1, 2), (16, 16)
    prompts = random_prompts(scene, draw, images, size)
    tiler, side = draw.choice([Tiles, MultiDiffusion]), draw.choice([(8, 8), (8, 16), (16, 8)])
    tiles = tiler(side, draw.randint(1, 5))
    split_memory(draw, model, monkeypatch)
    cfg = draw.choice((1.0, 2.0))
    noise = noise_of(images, size, seed)
    positive = conditioning(scene, prompts, lambda s: s)
    found = sample(with_tiles(model, tiles), noise, positive, scene.negative, TWO_STEPS, cfg)
    for cut in tiles.cuts(noise):
        part = conditioning(
            scene, prompts, lambda s, cut=cut: s.masked(cropped(s.region.mask, cut))
        )
        expected = sample(model, noise[cut], part, scene.negative, TWO_STEPS, cfg)
        assert close(found[cut], expected), cut


def test_six_rows_of_three_tiles_are_served(scene, model):
    """The smallest case: cond and uncond, three tiles in one call."""
    tiles = Tiles((8, 8), 3)
    found = sample(
        with_tiles(model, tiles), noise_of(1, (8, 24), 0), scene.bound(), scene.negative, TWO_STEPS
    )
    assert tiles.calls == [6, 6] and torch.isfinite(found).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_tile_of_an_area_is_where_it_is_on_the_whole_latent(scene, seed):
    """Conds with areas are cropped by the host, and then cut by the tiler."""
    draw = random.Random(seed)
    latents, images = Latents(draw.randint(1, 3), (16, 24)), draw.randint(1, 3)
    masked = scene.subjects[0].masked(torch.ones(8, 8))
    conds = {"positive": [{"model_conds": {}}]}
    tiler = draw.choice([Tiles, MultiDiffusion])
    add_places(conds, latents.size, tiler((4, 4), 2))
    height, width = 4 * draw.randint(1, 4), 4 * draw.randint(1, 6)
    top, left = draw.randint(0, 16 - height), draw.randint(0, 24 - width)
    area = None if draw.random() < 0.3 else (height, width, top, left)
    cropped_x = torch.zeros(images, 4, *(area or latents.size)[:2])
    entry = conds["positive"][0]["model_conds"][PLACES].process_cond(images, area)
    labels = SubjectRows((Row(BoundPrompt((masked,), scene.adapter.fingerprint)),), served=True)
    tiles = tiler((4, 4), 2).cuts(cropped_x)
    some = draw.sample(tiles, min(len(tiles), draw.randint(1, 3)))
    cut = tiler.cut_along(entry.cond, cropped_x, some)
    x, rows = torch.zeros(len(cut), 4, 4, 4), labels.process_cond(images, area).cond
    kwargs = place_rows(x, {KEY: rows, PLACES: cut, "y": 1})
    located = locate(kwargs[KEY], x, latents, {}, False)
    y, x = (area or (0, 0, 0, 0))[2:]
    expected = [(4, 4, y + c[2].start, x + c[3].start) for c in some for _ in range(images)]
    assert [row.area for row in located] == expected and set(kwargs) == {KEY, "y"}


@pytest.mark.parametrize("dim", [2, 3])
def test_windows_in_height_or_width_take_their_part_of_the_masks(scene, model, dim):
    size = (16, 16)
    subjects = [s.masked(random_mask(size, random.Random(i))) for i, s in enumerate(scene.subjects)]
    noise = noise_of(1, size, dim)
    found = sample(
        with_windows(model, "batched", 8, dim=dim, one_before=False),
        noise,
        bound(scene, subjects, scene.plain),
        scene.negative,
        TWO_STEPS,
    )
    for cut in Tiles((8, 16) if dim == 2 else (16, 8), 1).cuts(noise):
        part = [s.masked(cropped(s.region.mask, cut)) for s in subjects]
        alone = sample(
            model, noise[cut], bound(scene, part, scene.plain), scene.negative, TWO_STEPS
        )
        assert close(found[cut], alone)


@pytest.mark.parametrize("kind", [SilentTiles, SpotDiffusion])
def test_a_mask_is_refused_on_tiles_that_do_not_say_where_they_are(scene, model, kind):
    tiled = with_tiles(model, kind((8, 8), 2))
    noise = noise_of(1, (16, 16), 0)
    free = sample(tiled, noise, scene.bound(), scene.negative, TWO_STEPS)
    assert torch.isfinite(free).all()
    masked = tuple(s.masked(random_mask((16, 16), random.Random(1))) for s in scene.subjects)
    with pytest.raises(RuntimeError, match="MM-Diff: .*masks, boxes"):
        sample(tiled, noise, scene.bound(masked), scene.negative, TWO_STEPS)
    with pytest.raises(RuntimeError, match="attention maps"):
        watched = watch(tiled, Recorder(WatchPlan()))
        sample(watched, noise, prompt(scene), scene.negative, TWO_STEPS)


def test_maps_and_found_regions_follow_the_tiles(scene, model):
    tiled = with_tiles(model, Tiles((8, 8), 2))
    subjects = tuple(s.within(find=FindRegions(0.4, sharpness=50.0)) for s in scene.subjects)
    noise = noise_of(1, (8, 16), 0)
    recorder = Recorder(WatchPlan(strip=1, end=0.3))
    found = sample(watch(tiled, recorder), noise, prompt(scene, subjects), scene.negative, SIGMAS)
    assert torch.isfinite(found).all()
    for cut in Tiles((8, 8), 1).cuts(noise):
        alone = Recorder(WatchPlan(strip=1, end=0.3))
        sample(watch(model, alone), noise[cut], prompt(scene, subjects), scene.negative, SIGMAS)
        part = recorder.maps[0].text[(slice(None), *cut)]
        assert torch.allclose(part, alone.maps[0].text, atol=1e-4)


def test_a_part_that_is_sampled_by_itself_takes_the_whole_mask(scene, model):
    """A detailer's part is an image of its own to the sampler, so a mask is fitted to it whole."""
    left = torch.zeros(64, 64)
    left[:, :32] = 1
    masked = [scene.subjects[0].masked(left)]
    part, whole = noise_of(1, (8, 8), 0), torch.zeros(8, 8)
    whole[:, :4] = 1
    fitted = [scene.subjects[0].masked(whole)]
    drawn = [
        sample(model, part, bound(scene, subjects, scene.plain), scene.negative, TWO_STEPS)
        for subjects in (masked, fitted)
    ]
    assert close(*drawn)


def test_rows_that_are_no_multiple_of_the_conds_are_refused(scene, model):
    class Short(Tiles):
        def __call__(self, model_function, call):
            return model_function(call["input"][:1], call["timestep"][:1], **call["c"])

    with pytest.raises(RuntimeError, match="called with 1 rows, but the conditioning describes 2"):
        sample(
            with_tiles(model, Short((8, 8), 1)),
            noise_of(1, (8, 8), 0),
            scene.bound(),
            scene.negative,
            TWO_STEPS,
        )


# ---------------------------------------------------------------- regions inside the layers


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_a_node_repeats_inside_the_layers_are_refused_with_a_sentence(scene, seed):
    draw = random.Random(seed)
    texts = [scene.another_prompt()[0][0] for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.5:
        coupled = apply(with_regions_in_layers(scene.model, texts), scene.adapter, BOTH)
    else:
        coupled = with_regions_in_layers(apply(scene.model, scene.adapter, BOTH), texts)
    base = draw.choice([scene.bound(), scene.plain])
    with pytest.raises(RuntimeError, match="Attention Couple"):
        sample(
            coupled,
            noise_of(draw.randint(1, 2), (8, 8), seed),
            base,
            scene.negative,
            TWO_STEPS,
            draw.choice((1.0, 2.0)),
        )
