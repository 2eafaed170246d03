"""The node MM-Diff Multi-Subject Constraint Masks, as ComfyUI loads it."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from mmdiff_core.method.subjects import PromptSubject
from mmdiff_core.regions.shaping import feather_inwards

from support.server import PACK
from support.subjects import A, B, subject


@pytest.fixture(scope="module")
def node():
    """The node's class, from the pack as ComfyUI loads it."""
    spec = importlib.util.spec_from_file_location(
        "mm_diff_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    sys.modules["mm_diff_pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module("mm_diff_pack.nodes.regions").ConstraintMasks


@pytest.fixture
def run(node, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return lambda *names, feather=0.0, **inputs: node.execute(
        tuple(PromptSubject(subject(n)) for n in names), feather, **inputs
    )


def test_the_node_gives_subjects_a_preview_and_a_mask_for_each(run, tmp_path):
    half = torch.zeros(1, 48, 64)
    half[..., :32] = 1
    out = run(
        "ann",
        "bob",
        "eve",
        boxes='[{"subject": 2, "x": 0.5, "y": 0, "width": 0.5, "height": 1}]',
        mask_1=half,
        width=256,
        height=192,
    )
    chain, shown, masks = out.args
    assert (
        [s.name for s in chain] == ["ann", "bob", "eve"]
        and shown.shape == (1, 192, 256, 3)
        and masks.shape == (3, 48, 64)
    )
    assert (
        torch.equal(chain[0].region.mask, half[0])
        and torch.equal(chain[1].region.mask, 1 - half[0])
        and chain[2].region.mask is None
    )
    assert torch.equal(masks[:2], torch.stack([half[0], 1 - half[0]])) and masks[2].all()
    assert out.ui.as_dict()["images"] and list(tmp_path.rglob("*.png"))


def test_a_graph_from_before_the_boxes_gives_what_it_gave(run):
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    chain = run("ann", "bob", feather=8.0, mask_2=half).args[0]
    assert chain[0].region.mask is None and torch.equal(
        chain[1].region.mask, feather_inwards(half[0], 8.0)
    )


def test_found_boxes_are_read_in_pixels_of_width_and_height(run):
    chain, _, masks = run("ann", "bob", found_boxes=[[A, B]], width=200, height=100).args
    assert (
        masks.shape == (2, 100, 200)
        and chain[0].region.mask[:, :50].all()
        and chain[0].region.mask.sum() == chain[1].region.mask[:, 50:100].sum() == 5000
    )


@pytest.mark.parametrize("said, times", [({}, 8), ({"downscale_ratio_spacial": 16}, 16)])
def test_a_connected_latent_gives_the_pictures_size(run, said, times):
    latent = {"samples": torch.zeros(2, 4, 6, 10), **said}
    _, shown, masks = run(
        "ann",
        boxes='[{"subject": 1, "x": 0, "y": 0, "width": 0.5, "height": 1}]',
        width=200,
        height=100,
        latent=latent,
    ).args
    assert (
        shown.shape[1:3] == masks.shape[1:] == (6 * times, 10 * times)
        and masks[0, :, : 5 * times].all()
        and not masks[0, :, 5 * times :].any()
    )


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            {"mask_3": torch.ones(1, 8, 8)},
            r"mask_3 is connected, but there are only 2 subjects \(ann, bob\)",
        ),
        ({"mask_1": torch.ones(2, 8, 8)}, "mask_1 is a batch of 2 masks"),
        (
            {"boxes": '[{"subject": 3, "x": 0, "y": 0, "width": 1, "height": 1}]'},
            "box 1 is for subject 3, but there are only subjects 1 to 2",
        ),
    ],
)
def test_inputs_for_subjects_that_are_not_there_are_told(run, inputs, message):
    with pytest.raises(ValueError, match=message):
        run("ann", "bob", **inputs)


def test_wrong_text_is_refused_before_anything_runs(node):
    assert (
        node.validate_inputs("[]") is node.validate_inputs() is node.validate_inputs(None) is True
    )
    assert "box 1 is for subject 7" in node.validate_inputs(
        '[{"subject": 7, "x": 0, "y": 0, "width": 1, "height": 1}]'
    )
