"""The real TiledDiffusion and Attention Couple beside ours, with random weights.

Their code is not ours to ship: put checkouts of ComfyUI-TiledDiffusion (shiimizu's) and
cgem156-ComfyUI (laksjdjf's), from GitHub, into one folder and name it. Run only when asked for by
name:

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

from support import make
from support.scene import SIGMAS, close
from support.splitters import noise_of, sample

LIKE = "sd15"
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
    # cgem156's nodes name their category by it
    sys.modules[f"real_{name.replace('-', '_')}"].ROOT_NAME = "test_"
    return importlib.import_module(f"{path}.{parts[-1]}")


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
    nobody = sample(with_tiles, noise, scene.bound(()), scene.negative, steps, 2.0)
    assert not close(found[4], nobody)


def left_half() -> torch.Tensor:
    mask = torch.zeros(PICTURE)
    mask[:, : PICTURE[1] // 2] = 1
    return mask


@pytest.mark.parametrize("method", METHODS[:2])
def test_a_mask_on_tiles_keeps_the_subject_out_of_the_tiles_that_it_leaves_black(
    scene, model, method
):
    noise, steps = noise_of(1, PICTURE, 0), SIGMAS[[0, 2, 4]]
    masked = scene.bound([scene.subjects[0].masked(left_half())])
    found, nobody = (
        sample(tiled(model, method, 4), noise, prompt, scene.negative, steps, 2.0)
        for prompt in (masked, scene.bound(()))
    )
    right = (..., slice(PICTURE[1] // 2, None))
    assert close(found[right], nobody[right]) and not close(found, nobody)


def test_a_mask_on_shifted_tiles_is_refused_in_a_sentence(scene, model):
    masked = scene.bound([scene.subjects[0].masked(left_half())])
    shifted = tiled(model, "SpotDiffusion", 4)
    with pytest.raises(RuntimeError, match="MM-Diff: SpotDiffusion shifts the latent"):
        sample(shifted, noise_of(1, PICTURE, 0), masked, scene.negative, SIGMAS[[0, 2, 4]], 2.0)


def test_attention_couple_is_refused_in_a_sentence_that_says_what_to_use(scene, model):
    couple = module_of("cgem156-ComfyUI", "scripts", "attention_couple", "node").AttentionCouple()
    mask = left_half().repeat_interleave(8, 0).repeat_interleave(8, 1)[None]
    other = make.random_conditioning(pooled=scene.pooled, seed=7)
    both = couple.attention_couple_simple(model, 1 - mask, cond_1=other, mask_1=mask)[0]
    with pytest.raises(RuntimeError, match="MM-Diff: .*Attention Couple.*Conditioning"):
        sample(both, noise_of(1, PICTURE, 0), scene.bound(), scene.negative, SIGMAS[[0, 2, 4]], 2.0)
