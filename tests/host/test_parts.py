"""Every part of the adapter matters, by as much as in the official code; and the parts alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmdiff_core.checkpoints import checkpoint
from mmdiff_core.host import text as text_side
from mmdiff_core.host.application import Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.encode import encode_subject
from mmdiff_core.host.models import LoadedMMDiff
from mmdiff_core.host.nouns import find_nouns
from mmdiff_core.host.prompt import encode_prompt
from mmdiff_core.method.lora import LowRank
from mmdiff_core.method.refiner import QueryTokens, SubjectRefiner
from mmdiff_core.method.subjects import PromptSubject

from support.cases import CASE, CHECKPOINT, OURS
from support.recorded import load_world, probe, sized
from tiny_model import build


@pytest.fixture(scope="module")
def world():
    return load_world(CASE)


RECORDED = CASE.meta["measured"]["ablations_max_abs_change"]

LORA = {
    "to_q_lora": "to_q",
    "to_k_lora": "to_k",
    "to_v_lora": "to_v",
    "to_out_lora": "to_out",
    "to_k_lora_image": "to_k_image",
    "to_v_lora_image": "to_v_image",
}


def silence(pairs: dict, which) -> dict:
    return {k: LowRank(p.down, torch.zeros_like(p.up)) if which(k) else p for k, p in pairs.items()}


def without(mmdiff: LoadedMMDiff, part: str) -> LoadedMMDiff:
    """The adapter with one family of LoRA, or the image encoder's fine-tuning, taken away."""
    adapter = mmdiff.adapter
    stem = part.removesuffix(" (te2lora variant)")
    if stem.startswith("attn"):
        attention, family = stem.split(".")
        return LoadedMMDiff(
            replace(
                adapter,
                unet=silence(adapter.unet, lambda k: k.endswith(f"{attention}.{LORA[family]}")),
            )
        )
    if stem.startswith("text_encoder"):
        encoder, projection = stem.split(".")
        letter = "g" if encoder.endswith("_2") else "l"
        return LoadedMMDiff(
            replace(
                adapter,
                text=silence(
                    adapter.text, lambda k: k.startswith(letter) and k.endswith(f".{projection}")
                ),
            )
        )
    assert stem.startswith("image_encoder")
    return LoadedMMDiff(replace(adapter, vision={}))


def noise_and_text(world, mmdiff, variant="official"):
    (slot,) = CASE.slots()
    encoded = encode_subject(mmdiff, world["vision"], CASE.images(slot), CASE.faces(slot), "a")
    subject = PromptSubject(encoded.subject)
    adapted = text_side.adapted_clip(
        world["clip"], mmdiff, "released" if variant == "official" else "corrected"
    )
    clean, nouns = find_nouns(adapted.tokenize, CASE.meta["prompt"])
    sides = []
    for text in (clean, CASE.meta["negative_prompt"]):
        tokens = text_side.fuse_tokens(
            adapted, mmdiff, adapted.tokenize(text, return_word_ids=True), nouns, (subject,)
        )
        sides.append(text_side.encode(adapted, tokens))
    positive = encode_prompt(
        world["clip"],
        mmdiff,
        CASE.meta["prompt"],
        "",
        (subject,),
        behaviour="released" if variant == "official" else "corrected",
    ).positive
    model = apply(world["model"], mmdiff.adapter, Strength(fuse_scale=0.8))
    return probe(
        model, sized(CASE, positive), sized(CASE, sides[1]), CASE["input/probe_sample"], 501
    ), sides[0][0][0]


@pytest.fixture(scope="module")
def whole(world):
    return {v: noise_and_text(world, world["mmdiff"], v) for v in ("official", "te2lora")}


ADAPTER_PARTS = [p for p in RECORDED if not p.startswith(("clip face", "face embedding"))]


@pytest.mark.parametrize("part", ADAPTER_PARTS)
def test_taking_a_part_away_changes_the_picture_by_what_the_official_code_measured(
    world, whole, part
):
    variant = "te2lora" if "te2lora" in part else "official"
    noise, text = noise_and_text(world, without(world["mmdiff"], part), variant)
    for found, base, name in (
        (noise, whole[variant][0], "noise_pred_merged_t501"),
        (text, whole[variant][1], "prompt_embeds"),
    ):
        change, recorded = (found - base).abs().max().item(), RECORDED[part][name]
        assert change == pytest.approx(recorded, abs=1e-3), (
            f"{part}: {name} changed by {change:.4f}, recorded {recorded:.4f}"
        )


@pytest.mark.parametrize("part", ["refiner", "query", "subject_to_text", "fuse.l", "fuse.g"])
def test_every_module_of_the_adapter_matters(world, whole, part):
    config, flat = checkpoint.read(CHECKPOINT)
    muted = {
        k: torch.zeros_like(v) if k.startswith(f"modules.{part}") and k.endswith("weight") else v
        for k, v in flat.items()
    }
    import comfy.ops

    mmdiff = LoadedMMDiff(checkpoint.build(config, muted, "muted", ops=comfy.ops.manual_cast))
    noise, _ = noise_and_text(world, mmdiff)
    assert (noise - whole["official"][0]).abs().max() > 0.05


def test_the_face_head_with_two_heads_is_the_recorded_one():
    meta = json.loads((OURS / "face_head_2heads.json").read_text(encoding="utf-8"))
    stored = load_file(OURS / "face_head_2heads.safetensors")
    weights = build.recipe_tensors(meta["shapes"], 100, {"proj.0.weight": 4.0})
    query, refiner = QueryTokens(512, 512, 4), SubjectRefiner(512, 64, 4, 256)
    names = {"proj.0": "hidden", "proj.2": "tokens", "layer_norm": "norm"}
    query.load_state_dict(
        {
            f"{names[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}": v
            for k, v in weights.items()
            if not k.startswith("refiner")
        }
    )
    from mmdiff_core.checkpoints.released import MODULES

    table = {
        k.removeprefix("refiner."): v.removeprefix("refiner.")
        for k, v in MODULES["face_embeds_proj"].items()
        if k.startswith("refiner.")
    }
    stems = {k.format(i): v.format(i) for k, v in table.items() for i in range(4)}
    refiner.load_state_dict(
        {
            f"{stems[k.removeprefix('refiner.').rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}": v
            for k, v in weights.items()
            if k.startswith("refiner")
        }
    )
    with torch.no_grad():
        tokens = query(stored["face_embeds"])
        found = tokens + refiner(tokens, stored["clip_features"])
    assert refiner.blocks[0].heads == 2 and (found - stored["output"]).abs().max() <= 1e-4
