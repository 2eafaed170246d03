"""The real TiledDiffusion and Attention Couple beside ours, with random weights.

Their code is not ours to ship: put checkouts of ComfyUI-TiledDiffusion (shiimizu's), ComfyUI-ppm
(pamparamm's) and cgem156-ComfyUI (laksjdjf's), from GitHub, into one folder and name it. Run only
when asked for by name:

    MMDIFF_PACKS=FOLDER python dev.py test tests/tools/with_real_splitters.py
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmdiff_core.host.apply import apply

from support import make
from support.scene import BOTH, SIGMAS, Scene, close
from support.splitters import noise_of, sample

METHODS = ("MultiDiffusion", "Mixture of Diffusers", "SpotDiffusion")
PICTURE, TILE = (16, 16), 128  # positions of the latent, pixels


def module_of(name: str, *parts: str) -> ModuleType:
    """A module of a checkout, as a part of a package that runs nothing else of it."""
    folder = Path(os.environ["MMDIFF_PACKS"]) / name
    assert folder.is_dir(), f"{folder} is not there"
    path = f"real_{name.replace('-', '_')}"
    for part in ("", *parts[:-1]):
        folder, path = folder / part, f"{path}.{part}" if part else path
        package = sys.modules.setdefault(path, ModuleType(path))
        package.__path__ = [str(folder)]
    sys.modules[f"real_{name.replace('-', '_')}"].ROOT_NAME = "test_"
    return importlib.import_module(f"{path}.{parts[-1]}")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene("sd15")


@pytest.fixture(scope="module")
def model(scene):
    return apply(scene.model, scene.adapter, BOTH)


def tiled(model, method: str, per_call: int):
    node = module_of("ComfyUI-TiledDiffusion", "tiled_diffusion").TiledDiffusion()
    return node.apply(model, method, TILE // 2, TILE // 2, 0, per_call)[0]


@pytest.mark.parametrize("method", METHODS)
def test_tiles_four_to_a_call_are_those_of_one_to_a_call_and_show_the_subjects(
    scene, model, method
):
    noise, steps = noise_of(1, PICTURE, 0), SIGMAS[[0, 2, 4]]
    found = {}
    for per_call in (1, 4):
        with_tiles = tiled(model, method, per_call)
        found[per_call] = sample(with_tiles, noise, scene.bound(), scene.negative, steps, 2.0)
    assert close(found[1], found[4])
    plain = tiled(apply(scene.model, scene.adapter, BOTH), method, 4)
    nobody = sample(plain, noise, scene.bound(()), scene.negative, steps, 2.0)
    assert not close(found[4], nobody)


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_on_tiles_acts_or_is_refused_in_a_sentence(scene, model, method):
    noise, steps = noise_of(1, PICTURE, 0), SIGMAS[[0, 2, 4]]
    mask = torch.zeros(PICTURE)
    mask[:, : PICTURE[1] // 2] = 1
    masked = scene.bound([scene.subjects[0].masked(mask)])
    nobody = sample(tiled(model, method, 4), noise, scene.bound(()), scene.negative, steps, 2.0)
    try:
        found = sample(tiled(model, method, 4), noise, masked, scene.negative, steps, 2.0)
    except RuntimeError as error:
        assert "MM-Diff: " in str(error) and "tile" in str(error)
        return
    # tiles of the right half hold nothing of the subject
    right = (..., slice(PICTURE[1] // 2, None))
    assert close(found[right], nobody[right]) and not close(found, nobody)


def coupled(pack: str, model, cond, mask):
    if pack == "ComfyUI-ppm":
        pytest.importorskip("comfy.ldm.anima", reason="ComfyUI-ppm needs a newer ComfyUI")
        node = module_of(pack, "src", "nodes_ppm", "attention_couple_ppm").AttentionCouplePPM
        given = {"base_cond": cond, "base_mask": 1 - mask, "cond_1": cond, "mask_1": mask}
        return node.execute(model=model, **given).args[0]
    node = module_of(pack, "scripts", "attention_couple", "node").AttentionCouple()
    return node.attention_couple_simple(model, 1 - mask, cond_1=cond, mask_1=mask)[0]


@pytest.mark.parametrize("pack", ["ComfyUI-ppm", "cgem156-ComfyUI"])
def test_attention_couple_is_refused_in_a_sentence_that_says_what_to_use(scene, model, pack):
    mask = torch.zeros(1, PICTURE[0] * 8, PICTURE[1] * 8)
    mask[..., : PICTURE[1] * 4] = 1
    other = make.random_conditioning(pooled=scene.pooled, seed=7)
    both = coupled(pack, model, other, mask)
    with pytest.raises(RuntimeError, match="MM-Diff: .*Attention Couple.*Conditioning"):
        sample(both, noise_of(1, PICTURE, 0), scene.bound(), scene.negative, SIGMAS[[0, 2, 4]], 2.0)
