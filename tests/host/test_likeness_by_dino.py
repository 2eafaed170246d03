"""Likeness of things as DINOv2 sees them, against transformers' model with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.clip_vision
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmdiff_core.host import small_world
from mmdiff_core.host.compare import DINO
from mmdiff_core.host.likeness import measure
from mmdiff_core.method.subjects import PromptSubject, Region, Subject

from support import make
from support.tiny_encoders import picture

SIDE, SMALL = 518, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("Rex", "Tom")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return made(tmp_path_factory.mktemp("dino"), swiglu=False)


def made(folder: Path, swiglu: bool):
    """DINOv2 of transformers, and what ComfyUI makes of its file; `swiglu` as the giant has it."""
    import transformers as T

    swiglu = {"use_swiglu_ffn": swiglu}
    model = T.Dinov2Model(T.Dinov2Config(**SMALL, **swiglu, image_size=SIDE, patch_size=14)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # the image, not the CLS token or its positions, makes the difference
            own = name.startswith("embeddings.") and "patch" not in name
            weight.normal_(std=0.01 if own else 0.5, generator=generator)
    model.save_pretrained(folder)
    told = {"model_type": "dinov2", "layer_norm_eps": 1e-6, "image_size": SIDE}
    told |= {**SMALL, **swiglu, "image_mean": MEAN, "image_std": STD}
    (folder / "host.json").write_text(json.dumps(told))
    loaded = comfy.clip_vision.ClipVisionModel(str(folder / "host.json"))
    loaded.model.float()
    missing, unknown = loaded.load_sd(load_file(folder / "model.safetensors"))
    assert not missing and not unknown
    return model, loaded


@pytest.fixture(scope="module")
def general():
    return make.random_mmdiff(make.narrow_config("sd15"))


def subjects(mmdiff, *masks) -> tuple[PromptSubject, ...]:
    made = []
    for name, mask in zip(NAMES, masks or (None, None), strict=True):
        subject = Subject(name, torch.zeros(4, 8), {}, 1, mmdiff.adapter.fingerprint)
        made.append(PromptSubject(subject, region=Region(mask=mask)))
    return tuple(made)


def image(number: int, width: int, height: int) -> np.ndarray:
    return np.asarray(picture(number, width, height)) // (1 + number % 4)


def batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).float() / 255


@torch.no_grad()
def cls_of(model, shown: list[np.ndarray]) -> torch.Tensor:
    """transformers' CLS of images as wide as DINOv2 reads, with black bars above and below."""
    squares = np.zeros((len(shown), SIDE, SIDE, 3), np.uint8)
    top = (SIDE - len(shown[0])) // 2
    squares[:, top : top + len(shown[0])] = np.stack(shown)
    pixels = (squares / 255 - MEAN) / STD
    read = model(torch.from_numpy(pixels).float().movedim(-1, 1))
    return torch.nn.functional.normalize(read.last_hidden_state[:, 0], dim=-1)


@pytest.mark.parametrize("swiglu", [False, True], ids=["as large", "as giant"])
def test_scores_are_the_cosines_of_transformers_dinov2(general, tmp_path, swiglu):
    model, loaded = made(tmp_path, swiglu)
    drawn = [image(number, SIDE, 300) for number in (1, 9, 4)]
    wanted = [image(number, SIDE, 300) for number in (2, 13)]
    found = measure(
        general, batch(*drawn), subjects(general), loaded, references=batch(*wanted)
    ).scores
    expected = (cls_of(model, drawn) @ cls_of(model, wanted).T).numpy()
    np.testing.assert_allclose([each.scores for each in found.images], expected, atol=1e-5)
    assert np.ptp(expected) > 0.05
    assert found.scale == DINO and "DINOv2" in DINO.name


def test_images_of_other_sizes_are_prepared_as_clip_vision_encode_prepares_them(both, general):
    from nodes import CLIPVisionEncode

    _, loaded = both
    drawn, wanted = batch(image(3, 300, 300)), batch(image(6, 700, 700), image(7, 700, 700))
    found = measure(general, drawn, subjects(general), loaded, references=wanted).scores.images[0]
    with torch.no_grad():
        shown, *seen = (
            CLIPVisionEncode().encode(loaded, each[None], "none")[0].image_embeds[0]
            for each in (drawn[0], *wanted)
        )
    expected = [float(torch.cosine_similarity(shown, each, dim=0)) for each in seen]
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def test_what_stands_in_one_anothers_masks_is_swapped(both, general):
    _, loaded = both
    left = torch.zeros(200, 400)
    left[:, :200] = 1
    wanted = [np.full((200, 200, 3), 30, np.uint8), image(4, 200, 200)]
    held = subjects(general, left, 1 - left)
    right = np.concatenate(wanted, 1)
    swapped = np.concatenate(wanted[::-1], 1)
    found = measure(general, batch(right, swapped), held, loaded, references=batch(*wanted))
    assert [each.verdicts for each in found.scores.images] == [(), ("Rex and Tom are swapped",)]
    assert found.table.startswith(f"Scale: {DINO.name}; ")


def test_subjects_without_references_are_refused_since_they_carry_no_dino_embedding(both, general):
    shown = batch(image(1, 64, 64))
    with pytest.raises(ValueError, match="clip_vision is DINOv2, .* references, in the order"):
        measure(general, shown, subjects(general), both[1])


def test_an_encoder_that_is_neither_clip_nor_dinov2_is_refused(general, tmp_path):
    told = {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
    told |= {**SMALL, "intermediate_size": 64, "hidden_act": "gelu", "num_channels": 3}
    (tmp_path / "siglip.json").write_text(json.dumps(told))
    siglip = comfy.clip_vision.ClipVisionModel(str(tmp_path / "siglip.json"))
    shown = batch(image(1, 64, 64), image(2, 64, 64))
    with pytest.raises(ValueError, match="no CLIP projection and is not DINOv2"):
        measure(general, shown, subjects(general), siglip, references=shown)


def test_the_small_world_asks_for_its_own_encoder(both):
    world = small_world.load_adapter()
    shown = batch(image(1, 128, 128))
    with pytest.raises(ValueError, match="connect the image encoder that comes with"):
        measure(world, shown, subjects(world), both[1])
