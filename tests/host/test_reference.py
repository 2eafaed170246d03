"""The pack computes what the official code computed.

Recorded cases, stage by stage and through whole samplings.

    python dev.py test tests/host/test_reference.py --reference FOLDER   on other cases
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from mmdiff_core.host import text as text_side
from mmdiff_core.host.application import Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.nouns import find_nouns
from mmdiff_core.host.vision import patch_embeddings
from mmdiff_core.references.pixels import normalise, object_pixels

from support.cases import cls_embeddings
from support.recorded import (
    LAYER,
    NOISE,
    STAGE,
    VARIANTS,
    close,
    mixed_prompt,
    probe,
    recorded_prompt,
    sized,
)

# ---------------------------------------------------------------- stages


def test_reference_pictures_become_the_recorded_pixels(case):
    for slot in case.slots():
        for i in slot[:1] if len(case.slots()) == 1 else slot:
            found = object_pixels(case[f"input/object_raw_{i}"])
            close(found, case["input/object_pixel_values"][i], 1e-6, f"object_pixel_values {i}")
            close(
                normalise(found),
                case["official/stage/object_pixel_values_normalized"][i],
                1e-5,
                "normalised pixels",
            )


def test_the_fine_tuned_encoder_gives_the_recorded_cls(case, world):
    recorded = case["official/stage/image_encoder_cls"][0]
    for i in range(len(recorded)):
        if case.has(f"input/object_raw_{i}"):
            found = cls_embeddings(world["vision"], world["mmdiff"].adapter, case.object_image(i))
            close(found[0], recorded[i], STAGE, f"image_encoder_cls {i}")


def test_the_untouched_encoder_gives_the_recorded_patches(case, world):
    recorded = case["official/stage/image_encoder_bak_penultimate"]
    crops = torch.stack([case[f"input/face_crop_{i}"].float() / 255 for i in range(len(recorded))])
    close(patch_embeddings(world["vision"], crops), recorded, STAGE, "penultimate states")


def test_subjects_have_the_recorded_tokens_and_words(case, world, subjects):
    tokens = case["official/stage/face_tokens/cond"]
    words = {
        "l": case["official/stage/obj_embeds_1"][0],
        "g": case["official/stage/obj_embeds_2"][0],
    }
    columns = len(case["input/image_token_idx_mask"][0])
    for number, (slot, subject) in enumerate(zip(case.slots(), subjects, strict=True)):
        close(
            subject.subject.tokens,
            tokens[slot].flatten(0, 1),
            STAGE,
            f"face tokens of {subject.name}",
        )
        row = number if columns == 1 else slot[0]
        for encoder, recorded in words.items():
            close(
                subject.subject.words[encoder], recorded[row], STAGE, f"object embedding {encoder}"
            )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", ["pos", "neg"])
@pytest.mark.parametrize("kind", ["fused", "pure"])
def test_prompts_encode_as_recorded(case, world, subjects, variant, side, kind):
    adapted = text_side.adapted_clip(
        world["clip"], world["mmdiff"], "released" if variant == "official" else "corrected"
    )
    clean, nouns = find_nouns(adapted.tokenize, recorded_prompt(case))
    text = clean if side == "pos" else case.meta["negative_prompt"] or ""
    tokens = adapted.tokenize(text, return_word_ids=True)
    ids = [entry[0] for entry in tokens["l"][0]]
    assert ids == case[f"input/ids_{'prompt' if side == 'pos' else 'negative'}_1"][0].tolist()
    if kind == "fused" and subjects:
        tokens = text_side.fuse_tokens(adapted, world["mmdiff"], tokens, nouns, subjects)
    if not subjects and not case.has(f"{variant}/stage/prompt_embeds/{kind}_{side}"):
        return  # a prompt without a subject has nothing fused to record
    ((cond, options),) = text_side.encode(adapted, tokens)
    close(
        cond,
        case[f"{variant}/stage/prompt_embeds/{kind}_{side}"],
        STAGE,
        f"prompt_embeds {kind}_{side}",
    )
    close(
        options["pooled_output"],
        case[f"{variant}/stage/pooled/{kind}_{side}"],
        STAGE,
        f"pooled {kind}_{side}",
    )


def test_nouns_are_fused_to_the_recorded_rows(case, world, subjects):
    _, nouns = find_nouns(world["clip"].tokenize, recorded_prompt(case))
    assert [n.places["l"][1] for n in nouns] == case.meta["image_token_positions"][: len(nouns)]
    adapted = text_side.adapted_clip(world["clip"], world["mmdiff"], "released")
    for side, text in (
        ("pos", case.meta["prompt_without_trigger"]),
        ("neg", case.meta["negative_prompt"] or ""),
    ):
        tokens = adapted.tokenize(text, return_word_ids=True)
        fused = text_side.fuse_tokens(adapted, world["mmdiff"], tokens, nouns, subjects)
        for encoder, number in (("l", 1), ("g", 2)):
            recorded = case[f"official/stage/mm_fuse_{number}/{side}"]
            for noun, row in zip(nouns, recorded, strict=True):
                chunk, position = noun.places[encoder]
                close(fused[encoder][chunk][position][0], row, STAGE, f"mm_fuse_{number}/{side}")


# ---------------------------------------------------------------- the UNet


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["merged", "merged_neg_pure", "delayed"])
def test_noise_predictions_are_the_recorded_ones(case, world, subjects, variant, name):
    if not case.has(f"{variant}/noise_pred/{name}/t{case.meta['probe_timesteps'][0]}"):
        assert variant == "te2lora", f"{case.path.stem} lacks {variant}/noise_pred/{name}"
        return
    model = apply(
        world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"])
    )
    if name == "delayed":
        adapted = text_side.adapted_clip(
            world["clip"], world["mmdiff"], "released" if variant == "official" else "corrected"
        )
        positive, negative = (
            text_side.encode(adapted, adapted.tokenize(t, return_word_ids=True))
            for t in (case.meta["prompt_without_trigger"], case.meta["negative_prompt"] or "")
        )
    else:
        positive, negative = mixed_prompt(
            case, world, subjects, variant, fuse_negative=name == "merged"
        )
    for timestep in case.meta["probe_timesteps"]:
        found = probe(
            model,
            sized(case, positive),
            sized(case, negative),
            case["input/probe_sample"],
            timestep,
        )
        close(
            found,
            case[f"{variant}/noise_pred/{name}/t{timestep}"],
            NOISE,
            f"{variant} {name} t{timestep}",
        )


# diffusers' name of a probed layer -> the host's block
PROBED = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2": "input_blocks.4.1",
    "mid_block.attentions.0.transformer_blocks.1.attn2": "middle_block.1",
}


@contextlib.contextmanager
def layers_seen(unet, case):
    """(number of the probe, projection) -> [(input, output)] of each of its calls."""
    seen, handles = {}, []

    def keep(key):
        return lambda m, args, out: seen.setdefault(key, []).append((args[0].clone(), out.clone()))

    for number, name in case.meta["attn_probes"].items():
        layer = name.partition("transformer_blocks")
        attn = unet.get_submodule(f"{PROBED[name]}.{layer[1]}{layer[2]}")
        for part in ("to_q", "to_k", "to_v", "to_out"):
            handles.append(attn.get_submodule(part).register_forward_hook(keep((number, part))))
    yield seen
    for handle in handles:
        handle.remove()


def test_attention_layers_give_the_recorded_keys_values_and_outputs(case, world, subjects):
    model = apply(
        world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"])
    )
    positive, negative = mixed_prompt(case, world, subjects, "official", fuse_negative=True)
    sides = sized(case, positive), sized(case, negative)
    with layers_seen(model.model.diffusion_model, case) as seen:
        probe(model, *sides, case["input/probe_sample"], case.meta["attn_probe_timestep"])
    for number in case.meta["attn_probes"]:
        # to_k and to_v ran first on the subjects (before the loop), last on the text
        (_, k_text), (_, v_text) = seen[number, "to_k"][-1], seen[number, "to_v"][-1]
        found = {
            "input": seen[number, "to_q"][-1][0],
            "k_text": k_text,
            "v_text": v_text,
            "output": seen[number, "to_out"][-1][1],
        }
        rows = rows_uncond_first(found["input"], case[f"official/attn2/{number}/input"])
        for part, tensor in found.items():
            close(
                tensor[rows],
                case[f"official/attn2/{number}/{part}"],
                LAYER,
                f"attn2/{number}/{part}",
            )


def rows_uncond_first(found: torch.Tensor, recorded: torch.Tensor) -> list[int]:
    """The host may put either row first; the recording has uncond first."""
    straight = (found - recorded).abs().max()
    return [0, 1] if straight < (found.flip(0) - recorded).abs().max() else [1, 0]


@pytest.mark.parametrize("number", ["0", "1"])
def test_subject_keys_and_values_are_the_recorded_ones(case, world, subjects, number):
    if not subjects:
        return
    import comfy.model_management

    from mmdiff_core.host.application import Application
    from mmdiff_core.host.apply import check_unet
    from mmdiff_core.host.conditioning import BoundPrompt

    adapter = world["mmdiff"].adapter
    model = apply(world["model"], adapter, Strength(fuse_scale=1.0))
    comfy.model_management.load_model_gpu(model)
    application = Application(adapter, Strength(fuse_scale=1.0), check_unet(model, adapter))
    prompt = BoundPrompt(subjects, adapter.fingerprint)
    keys = application.keys_and_values(
        prompt, model.model.diffusion_model, torch.float32, torch.device("cpu")
    )
    slot = {"0": ("input", 4, 0), "1": ("middle", 0, 1)}[number]
    shown = torch.cat([torch.arange(4 * i, 4 * i + 4) for s in case.slots() for i in s])
    for part, found in zip(("k_image", "v_image"), keys[slot], strict=True):
        close(
            found.transpose(1, 2).flatten(2),
            case[f"official/attn2/{number}/{part}"][1:2, shown],
            LAYER,
            f"attn2/{number}/{part}",
        )
