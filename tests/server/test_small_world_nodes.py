"""The Small World Loader gives ordinary ComfyUI objects, and sprites stand in for photographs."""

from __future__ import annotations

import json

import pytest
import torch

from mmdiff_core.host import small_world
from mmdiff_core.small_world import scenes, sizes

from support.paths import PACK


@pytest.fixture(scope="module")
def world():
    return (*small_world.load(), small_world.load_adapter())


def test_the_loader_gives_a_model_a_clip_a_clip_vision_a_vae_and_an_adapter(world):
    import comfy.clip_vision
    import comfy.model_patcher
    import comfy.sd

    from mmdiff_core.host.models import LoadedMMDiff

    kinds = (
        comfy.model_patcher.ModelPatcher,
        comfy.sd.CLIP,
        comfy.clip_vision.ClipVisionModel,
        comfy.sd.VAE,
        LoadedMMDiff,
    )
    assert all(isinstance(part, kind) for part, kind in zip(world, kinds, strict=True))
    assert world[-1].config.name == "small-world"


def test_a_picture_of_dots_survives_the_vae_exactly(world):
    vae = world[3]
    dots = torch.from_numpy(scenes.draw(scenes.scene("test", 0, 1))[0]).float()
    picture = dots.repeat_interleave(sizes.DOT, 0).repeat_interleave(sizes.DOT, 1)[None]
    latents = vae.encode(picture)
    assert latents.shape == (1, sizes.CHANNELS, 16, 16)
    assert torch.allclose(vae.decode(latents), picture, atol=1e-6)


def test_an_empty_latent_of_128_px_becomes_a_picture_of_128_px(world):
    import comfy.sample

    model, clip, _, vae, _ = world
    latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, 16, 16))
    cond = clip.encode_from_tokens_scheduled(clip.tokenize("a cat at night"))
    blank = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    noise = comfy.sample.prepare_noise(latent, 0)
    drawn = vae.decode(
        comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", cond, blank, latent, seed=0)
    )
    assert drawn.shape == (1, 128, 128, 3)
    assert torch.equal(drawn, drawn[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_the_caption_decides_the_background(world):
    """The base listens: night is darker than snow over the seeds."""
    import comfy.sample

    model, clip, _, vae, _ = world
    blank = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    means = []
    for text in ("a cat and a robot at night", "a cat and a robot in the snow"):
        cond = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        latent = torch.zeros(4, sizes.CHANNELS, 16, 16)
        noise = comfy.sample.prepare_noise(latent, 3)
        drawn = vae.decode(
            comfy.sample.sample(
                model, noise, 8, 3.0, "dpmpp_2m", "normal", cond, blank, latent, seed=3
            )
        )
        means.append(drawn.flatten(1).mean(1))
    assert (means[1] - means[0]).mean() > 0.3


def test_a_word_that_was_never_trained_says_nothing_but_is_no_error(world):
    clip = world[1]
    known, unknown = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]
        for text in ("a cat", "a dragon")
    )
    assert torch.isfinite(unknown).all() and not torch.allclose(known, unknown)


def test_a_sprite_is_the_same_for_the_same_inputs_and_its_first_picture_is_clean():
    wanted = ("robot", 0.3, 0.9, "dots", "tall", "hat")
    pictures = small_world.draw_references(*wanted, count=3, seed=4)
    assert pictures.shape == (3, 128, 128, 3) and pictures.min() >= 0 and pictures.max() <= 1
    assert torch.equal(pictures, small_world.draw_references(*wanted, count=3, seed=4))
    assert not torch.equal(pictures[1:], small_world.draw_references(*wanted, count=3, seed=5)[1:])
    clean = scenes.reference("robot", scenes.Identity(0.3, 0.9, "dots", "tall", "hat"))
    assert torch.allclose(pictures[0, ::4, ::4], torch.from_numpy(clean).float())


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="unet.safetensors is missing"):
        small_world.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="adapter.safetensors is missing"):
        small_world.load_adapter(tmp_path)


def test_the_worlds_weights_are_small_and_say_how_they_were_made():
    from safetensors import safe_open

    files = list(small_world.WEIGHTS.glob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) <= 16_000_000
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        assert (
            header.get("made_by", "").startswith("python -m mmdiff_core")
            and header.get("hardware")
            and (header.get("training_step") or header.get("steps"))
        ), path.name


def test_a_preview_of_small_pictures_is_enlarged_by_whole_dots_and_others_stay():
    from mmdiff_core.references.pixels import enlarged

    small, large = torch.rand(2, 32, 32, 3), torch.rand(1, 224, 224, 3)
    shown = enlarged(small)
    assert shown.shape == (2, 128, 128, 3) and torch.equal(shown[:, ::4, ::4], small)
    assert torch.equal(enlarged(large), large)


def test_the_workflows_and_the_demo_draw_with_the_small_worlds_sampler_numbers():
    root = PACK
    demo = json.loads(
        (root / "tests/small_world/demo/two_ghosts.api.json").read_text(encoding="utf-8")
    )
    found = [node["inputs"] for node in demo.values() if node["class_type"] == "KSampler"]
    workflows = list((root / "workflows").glob("*, small world.json"))
    for path in workflows:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] == "KSampler":
                steps, cfg, name, scheduler = node["widgets_values"][2:6]
                found.append(
                    {"steps": steps, "cfg": cfg, "sampler_name": name, "scheduler": scheduler}
                )
    assert len(found) == 1 + len(workflows) == 10
    for inputs in found:
        assert {k: inputs[k] for k in sizes.SAMPLING} == sizes.SAMPLING


def test_the_shipped_adapter_predicts_subjects_better_from_own_references_than_from_anothers():
    from mmdiff_core.host.frozen_base.build import load_task
    from mmdiff_core.lab.measures import gain

    task = load_task(small_world.WEIGHTS / "adapter.safetensors")
    found = gain(task, 48, (0.6, 0.8))
    task.bridge.close()
    assert found["0.6"] > 0.05 and found["0.8"] > 0.05
