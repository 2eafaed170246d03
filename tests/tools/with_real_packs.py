"""The real IPAdapter_plus, InstantID and PuLID beside ours, with random weights.

Their code is not ours to ship: put checkouts of ComfyUI_IPAdapter_plus, ComfyUI_InstantID and
PuLID_ComfyUI (cubiq's, on GitHub) into one folder and name it. Run only when asked for by name:

    MMDIFF_PACKS=FOLDER python dev.py test tests/tools/with_real_packs.py
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mmdiff_core.host.apply import apply

from support import make
from support.scene import IMAGE_ONLY, SIGMAS

FOLDER = os.environ.get("MMDIFF_PACKS")

# pack -> (its module, its function that patches a slot, the keyword its adapter goes by)
PACKS = {
    "ComfyUI_IPAdapter_plus": ("IPAdapterPlus", "set_model_patch_replace", "ipadapter"),
    "ComfyUI_InstantID": ("InstantID", "_set_model_patch_replace", "ipadapter"),
    "PuLID_ComfyUI": ("pulid", "set_model_patch_replace", "pulid"),
}
# what they import and this test does not reach
OUT_OF_REACH = {
    "insightface": [],
    "insightface.app": ["FaceAnalysis"],
    "facexlib": [],
    "facexlib.parsing": ["init_parsing_model"],
    "facexlib.utils": [],
    "facexlib.utils.face_restoration_helper": ["FaceRestoreHelper"],
    "cv2": [],
    "timm": [],
    "ftfy": [],
}


def load_pack(name: str) -> ModuleType:
    """The pack's own module, as a part of a package that has only what this test reaches."""
    for missing, names in OUT_OF_REACH.items():
        try:
            importlib.import_module(missing)
        except ImportError:
            stub = sys.modules[missing] = ModuleType(missing)
            stub.__path__ = []
            for attribute in names:
                setattr(stub, attribute, object)
    folder = Path(FOLDER) / name
    assert folder.is_dir(), f"{FOLDER} has no {name}"
    package = sys.modules[f"real_{name}"] = ModuleType(f"real_{name}")
    package.__path__ = [str(folder)]
    if name.startswith("PuLID"):  # its image tower and encoder are never run here
        for part, attributes in {
            "eva_clip": [],
            "eva_clip.constants": ["OPENAI_DATASET_MEAN", "OPENAI_DATASET_STD"],
            "encoders": ["IDEncoder"],
        }.items():
            stub = sys.modules[f"real_{name}.{part}"] = ModuleType(part)
            stub.__path__ = []
            for attribute in attributes:
                setattr(stub, attribute, object)
    return importlib.import_module(f"real_{name}.{PACKS[name][0]}")


@pytest.fixture(scope="module")
def packs() -> dict[str, ModuleType]:
    assert FOLDER, "MMDIFF_PACKS names no folder with checkouts of other packs"
    return {name: load_pack(name) for name in PACKS}


def theirs(packs, name: str, model, scene):
    """The pack on a clone, by its own function for a slot, on the layers of SDXL."""
    module, (_, patch, keyword) = packs[name], PACKS[name]
    generator = torch.Generator().manual_seed(len(name))
    layers, patched = {}, model.clone()
    adapter = SimpleNamespace(
        ip_layers=SimpleNamespace(to_kvs=layers), get_multigpu_clone=lambda device: adapter
    )
    for number, block in enumerate(scene.adapter.config.base.blocks):
        for kind in ("k", "v"):
            layer = torch.nn.Linear(make.CONTEXT, block.width, bias=False)
            layer.weight.data = (
                torch.randn(layer.weight.shape, generator=generator) * make.CONTEXT**-0.5
            )
            layers[f"{number * 2 + 1}_to_{kind}_ip"] = layer.requires_grad_(False)
        kwargs = {
            "weight": 1.0,
            "cond": torch.randn(1, 4, make.CONTEXT, generator=generator),
            "uncond": torch.zeros(1, 4, make.CONTEXT),
            "sigma_start": 999999999.9,
            "sigma_end": 0.0,
            "mask": None,
            "module_key": str(number * 2 + 1),
        }
        getattr(module, patch)(patched, {**kwargs, keyword: adapter}, block.slot)
    return patched


def built(packs, scene, order) -> torch.Tensor:
    model = scene.model
    for name in order:
        model = (
            apply(model, scene.adapter, IMAGE_ONLY)
            if name == "ours"
            else theirs(packs, name, model, scene)
        )
    return scene.sample(model, scene.bound(), sigmas=SIGMAS)


@pytest.mark.parametrize("name", PACKS)
def test_the_real_pack_and_ours_both_act_in_either_order(packs, scene, name):
    before, after = built(packs, scene, [name, "ours"]), built(packs, scene, ["ours", name])
    assert torch.allclose(before, after, atol=2e-4)
    for alone in ([name], ["ours"]):
        assert not torch.allclose(before, built(packs, scene, alone), atol=1e-2)


def test_all_of_them_and_ours_make_the_same_picture_in_five_orders(packs, scene):
    first, *others = (
        built(packs, scene, order) for order in list(itertools.permutations(["ours", *PACKS]))[::5]
    )
    assert len(others) == 4 and all(torch.allclose(first, other, atol=5e-4) for other in others)


@pytest.mark.parametrize("name", PACKS)
def test_the_real_pack_on_a_clone_leaves_the_model_it_was_cloned_from(packs, scene, name):
    model = apply(scene.model, scene.adapter, IMAGE_ONLY)
    expected = scene.sample(model, scene.bound(), sigmas=SIGMAS)
    theirs(packs, name, model, scene)
    assert torch.equal(scene.sample(model, scene.bound(), sigmas=SIGMAS), expected)
