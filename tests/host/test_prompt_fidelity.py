"""The prompt as a tie-break of MM-Diff Pick Best, held to transformers' CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import comfy.supported_models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_likeness import RIGHT, WITHOUT_BEN, batch, best, output_of

from mmdiff_core.host import small_world
from mmdiff_core.host.fidelity import prompt_fidelity

from support.graphs import node
from support.in_process import Refused
from support.tiny_encoders import picture

WIDTH, SIDE = 64, 32
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
SIZES |= {"hidden_size": WIDTH, "hidden_act": "gelu", "projection_dim": WIDTH}
VISION = {**SIZES, "image_size": SIDE, "patch_size": 8, "num_channels": 3}
PROMPT = "a photo of a dog<|rex|> on the (beach:1.3)"
READ = "a photo of a dog on the beach"
SHOWN = batch(RIGHT, WITHOUT_BEN, torch.full((128, 128, 3), 0.4))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, object]:
    """CLIP of transformers, random, and its folder."""
    import transformers as T

    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = T.CLIPConfig(
        text_config={**SIZES, **ends, "vocab_size": 49408}, vision_config=VISION, projection_dim=64
    )
    model, generator = T.CLIPModel(config).eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3, generator=generator)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder, model


def clip_of(family, state: dict | None, part: str = "clip_g"):
    """CLIP of a family whose encoder `part` has these weights; of others nothing is read."""
    sizes = {f"{name}_model_config": dict(SIZES) for name in ("clip_l", "clip_g")}
    target = family({}).clip_target()
    built = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    for weight in built.cond_stage_model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    if state is not None:
        transformer = getattr(built.cond_stage_model, part).transformer
        own = {key: state[key].float() for key in transformer.state_dict()}
        transformer.load_state_dict(own, strict=True)
    return built


def vision_of(folder: Path, state: dict | None = None, **changed):
    told = {**VISION, "model_type": "clip_vision_model", **changed}
    (folder / "vision.json").write_text(json.dumps(told))
    built = comfy.clip_vision.ClipVisionModel(str(folder / "vision.json"))
    built.model.float()
    if state is not None:
        own = {key: state[key].float() for key in built.model.state_dict()}
        built.model.load_state_dict(own, strict=True)
    return built


@pytest.fixture(scope="module")
def encoders(written):
    """CLIP and CLIP_VISION as ComfyUI holds them, with the weights of the fixture's model."""
    state = load_file(written[0] / "model.safetensors")
    return clip_of(comfy.supported_models.SDXL, state), vision_of(written[0], state)


def shown(*numbers: int) -> np.ndarray:
    return np.stack([np.asarray(picture(number, SIDE, SIDE)) for number in numbers])


def images(*numbers: int) -> torch.Tensor:
    return torch.from_numpy(shown(*numbers)).float() / 255


@torch.no_grad()
def by_transformers(model, tokens: list[int], *numbers: int) -> list[float]:
    pixels = torch.from_numpy((shown(*numbers) / 255 - MEAN) / STD).float().movedim(-1, 1)
    read = model(input_ids=torch.tensor([tokens]), pixel_values=pixels)
    return (read.logits_per_image[:, 0] / model.logit_scale.exp()).tolist()


def test_scores_are_the_cosines_of_transformers_clip_without_markers_and_weights(written, encoders):
    clip, vision = encoders
    tokens = [token for token, _ in clip.tokenize(READ)["g"][0]]
    found = prompt_fidelity(images(1, 5, 9), PROMPT, clip, vision, 0.02)
    expected = by_transformers(written[1], tokens, 1, 5, 9)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert np.ptp(expected) > 0.01 and found.within == 0.02


def test_clip_g_by_itself_gives_the_same(written, encoders):
    state = load_file(written[0] / "model.safetensors")
    alone = clip_of(comfy.supported_models.SDXLRefiner, state)
    both = prompt_fidelity(images(1, 5), PROMPT, *encoders, 0.0)
    assert prompt_fidelity(images(1, 5), PROMPT, alone, encoders[1], 0.0).scores == both.scores


def test_with_nothing_given_there_is_no_fidelity_and_with_a_part_it_is_told(encoders):
    clip, vision = encoders
    assert prompt_fidelity(images(1), " ", None, None, 0.02) is None
    with pytest.raises(ValueError, match="^clip and clip_vision of MM-Diff Pick Best is not given"):
        prompt_fidelity(images(1), "a dog", None, None, 0.02)
    with pytest.raises(ValueError, match="^prompt of MM-Diff Pick Best is not given"):
        prompt_fidelity(images(1), "", clip, vision, 0.02)


def test_text_encoders_that_share_no_known_space_are_refused(encoders):
    for clip in (clip_of(comfy.supported_models.SD15, None), small_world.load().clip):
        with pytest.raises(ValueError, match="clip has the text encoders 'l', .*ViT-bigG/14"):
            prompt_fidelity(images(1), "a dog", clip, encoders[1], 0.02)


@pytest.mark.parametrize("broken", [0.0, float("nan")])
def test_a_text_encoder_without_its_projection_is_refused(written, encoders, broken):
    state = load_file(written[0] / "model.safetensors")
    state["text_projection.weight"] = torch.full_like(state["text_projection.weight"], broken)
    clip = clip_of(comfy.supported_models.SDXL, state)
    with pytest.raises(ValueError, match="gives nothing for a whole prompt"):
        prompt_fidelity(images(1), "a dog", clip, encoders[1], 0.02)


def test_an_image_encoder_of_another_width_is_refused(encoders, tmp_path):
    wider = vision_of(tmp_path, projection_dim=96)
    with pytest.raises(ValueError, match="projection to 96 numbers, expected 64 as clip has"):
        prompt_fidelity(images(1), "a dog", encoders[0], wider, 0.02)
    siglip = vision_of(tmp_path, model_type="siglip_vision_model")
    siglip.model.visual_projection = torch.nn.Identity()
    with pytest.raises(ValueError, match="projection to none numbers"):
        prompt_fidelity(images(1), "a dog", encoders[0], siglip, 0.02)


def graph(host, encoders, **inputs) -> dict:
    """Pick Best of three images, the best first, where all are close enough for the prompt."""
    clip, vision = encoders
    prompt = best(host, SHOWN, 3)
    given = {"prompt": PROMPT, "clip": ["clip", 0], "clip_vision": ["vision", 0], "within": 1.0}
    prompt["best"] = node("MMDiffPickBest", **prompt["best"]["inputs"], **(given | inputs))
    return prompt | {"clip": host.give(clip), "vision": host.give(vision)}


def test_the_node_orders_what_is_close_by_the_prompt_and_shows_its_scores(host, encoders):
    scores = prompt_fidelity(SHOWN, PROMPT, *encoders, 1.0).scores
    order = sorted(range(3), key=lambda number: -scores[number])
    assert order != [0, 1, 2]
    assert torch.equal(output_of(host, graph(host, encoders), 0, "best"), SHOWN[order])
    *lines, _, told = output_of(host, graph(host, encoders), 6, "best").split("\n")
    for line, number in zip(lines, order, strict=True):
        assert f", prompt {scores[number]:.3f}: image {number + 1}: " in line
    assert told.startswith("Prompt: cosine of CLIP") and "within 1 of" in told
    strict = graph(host, encoders, within=0.0)
    assert torch.equal(output_of(host, strict, 0, "best"), SHOWN)


def test_the_small_worlds_own_encoders_are_refused_in_a_graph(host, encoders):
    own = {"clip": ["world", 1], "clip_vision": ["world", 3]}
    with pytest.raises(Refused, match="the small world has none"):
        host.run(graph(host, encoders, **own))
