"""A base is one record: SD 2.x, which no adapter was published for, works end to end with random
weights.
"""

from __future__ import annotations

import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock

from mmdiff_core.bases import BASES, SD2, Base
from mmdiff_core.checkpoints import checkpoint
from mmdiff_core.host.apply import Strength, apply
from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.host.prompt import encode_prompt

from support import make
from support.scene import Scene


def narrow_clip(config) -> comfy.sd.CLIP:
    """CLIP as of SD 2.x with one narrow text encoder of random weights."""
    encoder = config.base.text[0]
    sizes = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": 4,
        "intermediate_size": encoder.width * config.base.mlp_ratio,
        "projection_dim": encoder.width,
    }
    target = comfy.supported_models.SD20({}).clip_target()
    options = {"model_name": "clip_h", "clip_h_model_config": sizes, "dtype": torch.float32}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        clip = comfy.sd.CLIP(target, model_options=options)
        for parameter in clip.cond_stage_model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return clip


def test_an_adapter_for_sd2_encodes_samples_and_is_saved(tmp_path):
    config = make.narrow_config("sd2")
    path = tmp_path / "sd2.safetensors"
    checkpoint.save_single(path, config, make.random_tensors(config), torch.float32)
    mmdiff = load_mmdiff(path)
    assert mmdiff.config == config and mmdiff.config.encoders == ("h",)
    scene, model = Scene("sd15"), make.narrow_model("sd2")
    ann = make.random_subject(mmdiff, "ann")
    clip = narrow_clip(config)
    prompts = [
        encode_prompt(clip, mmdiff, *text, "", subjects)
        for text, subjects in (
            (("a man<|ann|> in the snow",), (ann,)),
            (("a man in the snow",), ()),
        )
    ]
    fused, plain = (p.positive[0][0] for p in prompts)
    assert not torch.allclose(fused, plain, atol=1e-3)
    applied = apply(model, mmdiff.adapter, Strength())
    shown, absent = (narrow_sample(scene, applied, p) for p in prompts)
    assert torch.isfinite(shown).all() and not torch.allclose(shown, absent, atol=1e-3)


def narrow_sample(scene, model, prompt) -> torch.Tensor:
    """Latents; the narrow UNet reads text of width 64, the narrow text encoder makes 96."""
    positive, negative = narrowed(prompt.positive), narrowed(prompt.negative)
    return scene.sample(model, positive, negative=negative)


def narrowed(side: list) -> list:
    return [[text[..., : make.CONTEXT], options] for text, options in side]


def test_the_record_of_sd2_has_the_layers_of_comfyuis_own_unet():
    model = make.narrow_model("sd2")
    modules = dict(model.model.diffusion_model.named_modules())
    paths = {name for name, module in modules.items() if isinstance(module, BasicTransformerBlock)}
    assert paths == {block.path for block in SD2.blocks}
    for block in SD2.blocks:
        assert modules[block.path].attn2.to_q.out_features == block.width // 10


@pytest.mark.parametrize("base", BASES.values(), ids=lambda base: base.name)
def test_a_record_survives_its_json(base):
    assert Base.from_json(base.to_json()) == base


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}'])
def test_what_is_no_record_is_refused_with_the_fields_it_should_have(text):
    with pytest.raises(
        ValueError, match="cannot be read.*expected the fields name, unet, context_width"
    ):
        Base.from_json(text)


def test_a_checkpoint_for_an_unknown_base_brings_its_record_and_one_for_a_known_base_does_not(
    tmp_path,
):
    from safetensors import safe_open

    config = make.narrow_config("sd15")
    path = tmp_path / "narrow.safetensors"
    checkpoint.save_single(path, config, make.random_tensors(config))
    with safe_open(str(path), framework="pt") as file:
        assert Base.from_json(file.metadata()["base"]) == config.base
    adapter = load_small_world_header()
    assert "base" not in adapter and checkpoint.config_of(adapter, "x").base == BASES["small-world"]


def load_small_world_header() -> dict[str, str]:
    from safetensors import safe_open

    from mmdiff_core.host.small_world import WEIGHTS, find

    with safe_open(str(find(WEIGHTS, "adapter")[0]), framework="pt") as file:
        return file.metadata()
