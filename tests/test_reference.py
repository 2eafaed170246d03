"""The pack computes what the official code computed: recorded cases, stage by stage and through whole samplings.

    python dev.py test tests/test_reference.py --reference FOLDER      runs it on another folder of cases
"""
from __future__ import annotations

import comfy.sample
import comfy.samplers
import node_helpers
import pytest
import torch

from mmdiff_core.host import text as text_side
from mmdiff_core.host.apply import Strength, apply
from mmdiff_core.host.encode import encode_prompt, encode_subject
from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.host.vision import patch_embeddings
from mmdiff_core.method.subjects import PromptSubject
from mmdiff_core.references.pixels import normalise, object_pixels

from cases import Case, checkpoint_folder, cls_embeddings, weights_folder
from tiny_model import build

STAGE, LAYER, NOISE, LATENTS = 1e-4, 3e-4, 1e-4, 2e-3
VARIANTS = ("official", "te2lora")
BEHAVIOURS = {
    # recorded variant, is the negative prompt fused -> how the pack is asked to run
    ("official", True): "released", ("te2lora", False): "corrected",
}


def close(found: torch.Tensor, recorded: torch.Tensor, tolerance: float, what: str) -> None:
    assert found.shape == recorded.shape, f"{what}: shape {tuple(found.shape)}, recorded {tuple(recorded.shape)}"
    worst = (found.float().cpu() - recorded.float()).abs().max().item()
    assert worst <= tolerance, f"{what}: differs by {worst:.2e}, allowed {tolerance:.0e}"


@pytest.fixture(scope="session")
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="session")
def world(case):
    """The small model of the case's folder."""
    folder = weights_folder(case.path.parent)
    return {
        "model": build.model(folder), "clip": build.clip(folder), "vision": build.clip_vision(folder),
        "mmdiff": load_mmdiff(checkpoint_folder(case.path.parent)),
    }


@pytest.fixture(scope="session")
def subjects(case, world):
    return tuple(
        PromptSubject(encode_subject(world["mmdiff"], world["vision"], case.images(slot), case.faces(slot), f"subject {i}").subject)
        for i, slot in enumerate(case.slots(), 1)
    )


def recorded_prompt(case: Case) -> str:
    return case.meta["prompt"] if case.slots() else case.meta["prompt_without_trigger"]


def mixed_prompt(case, world, subjects, variant: str, fuse_negative: bool, start: float = 0.0):
    """Both sides as recorded, also for the combinations that are neither "released" nor "corrected"."""
    args = (world["clip"], world["mmdiff"], recorded_prompt(case), case.meta["negative_prompt"] or "", subjects, start)
    if (variant, fuse_negative) in BEHAVIOURS:
        encoded = encode_prompt(*args, BEHAVIOURS[variant, fuse_negative])
        return encoded.positive, encoded.negative
    lora = "released" if variant == "official" else "corrected"
    positive = encode_prompt(*args, lora).positive
    adapted = text_side.adapted_clip(world["clip"], world["mmdiff"], lora)
    tokens = adapted.tokenize(case.meta["negative_prompt"] or "", return_word_ids=True)
    if fuse_negative:
        _, nouns = text_side.find_nouns(adapted.tokenize, recorded_prompt(case))
        tokens = text_side.fuse_tokens(adapted, world["mmdiff"], tokens, nouns, subjects)
    return positive, text_side.encode(adapted, tokens)


def sized(case, conditioning):
    return node_helpers.conditioning_set_values(conditioning, case.size_options)


# ---------------------------------------------------------------- stages

def test_reference_pictures_become_the_recorded_pixels(case):
    for slot in case.slots():
        for i in slot[:1] if len(case.slots()) == 1 else slot:
            found = object_pixels(case[f"input/object_raw_{i}"])
            close(found, case["input/object_pixel_values"][i], 1e-6, f"object_pixel_values {i}")
            close(normalise(found), case["official/stage/object_pixel_values_normalized"][i], 1e-5, "normalised pixels")


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
    words = {"l": case["official/stage/obj_embeds_1"][0], "g": case["official/stage/obj_embeds_2"][0]}
    columns = len(case["input/image_token_idx_mask"][0])
    for number, (slot, subject) in enumerate(zip(case.slots(), subjects, strict=True)):
        close(subject.subject.tokens, tokens[slot].flatten(0, 1), STAGE, f"face tokens of {subject.name}")
        row = number if columns == 1 else slot[0]
        for encoder, recorded in words.items():
            close(subject.subject.words[encoder], recorded[row], STAGE, f"object embedding {encoder}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", ["pos", "neg"])
@pytest.mark.parametrize("kind", ["fused", "pure"])
def test_prompts_encode_as_recorded(case, world, subjects, variant, side, kind):
    adapted = text_side.adapted_clip(world["clip"], world["mmdiff"], "released" if variant == "official" else "corrected")
    clean, nouns = text_side.find_nouns(adapted.tokenize, recorded_prompt(case))
    text = clean if side == "pos" else case.meta["negative_prompt"] or ""
    tokens = adapted.tokenize(text, return_word_ids=True)
    ids = [entry[0] for entry in tokens["l"][0]]
    assert ids == case[f"input/ids_{'prompt' if side == 'pos' else 'negative'}_1"][0].tolist()
    if kind == "fused" and subjects:
        tokens = text_side.fuse_tokens(adapted, world["mmdiff"], tokens, nouns, subjects)
    if not subjects and not case.has(f"{variant}/stage/prompt_embeds/{kind}_{side}"):
        return              # a prompt without a subject has nothing fused to record
    (cond, options), = text_side.encode(adapted, tokens)
    close(cond, case[f"{variant}/stage/prompt_embeds/{kind}_{side}"], STAGE, f"prompt_embeds {kind}_{side}")
    close(options["pooled_output"], case[f"{variant}/stage/pooled/{kind}_{side}"], STAGE, f"pooled {kind}_{side}")


def test_nouns_are_fused_to_the_recorded_rows(case, world, subjects):
    _, nouns = text_side.find_nouns(world["clip"].tokenize, recorded_prompt(case))
    assert [n.places["l"][1] for n in nouns] == case.meta["image_token_positions"][: len(nouns)]
    adapted = text_side.adapted_clip(world["clip"], world["mmdiff"], "released")
    for side, text in (("pos", case.meta["prompt_without_trigger"]), ("neg", case.meta["negative_prompt"] or "")):
        tokens = adapted.tokenize(text, return_word_ids=True)
        fused = text_side.fuse_tokens(adapted, world["mmdiff"], tokens, nouns, subjects)
        for encoder, number in (("l", 1), ("g", 2)):
            recorded = case[f"official/stage/mm_fuse_{number}/{side}"]
            for noun, row in zip(nouns, recorded, strict=True):
                chunk, position = noun.places[encoder]
                close(fused[encoder][chunk][position][0], row, STAGE, f"mm_fuse_{number}/{side}")


# ---------------------------------------------------------------- the UNet

class ProbeSampler(comfy.samplers.Sampler):
    """One model call on a recorded input at a recorded timestep, both rows of it, through ComfyUI's sampling path."""

    def __init__(self, sample: torch.Tensor, layer=None):
        self.input, self.seen = sample, {}

    def max_denoise(self, model_wrap, sigmas):
        return False

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        sigma = sigmas[:1]
        x = self.input * (sigma ** 2 + 1).sqrt()
        guider = model_wrap
        conds = [guider.conds["negative"], guider.conds["positive"]]
        denoised = comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, sigma, extra_args["model_options"])
        self.predicted = torch.cat([(x - d) / sigma for d in denoised])
        return x


def probe(model, positive, negative, sample, timestep: float, hooks=()) -> torch.Tensor:
    """Noise prediction [2 4 h w] (uncond, cond) of one call at a timestep."""
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigma(torch.tensor([float(timestep)]))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(5.0)
    sampler = ProbeSampler(sample)
    guider.sample(torch.zeros_like(sample), torch.zeros_like(sample), sampler, torch.cat([sigma, torch.zeros(1)]), seed=0, disable_pbar=True)
    return sampler.predicted


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["merged", "merged_neg_pure", "delayed"])
def test_noise_predictions_are_the_recorded_ones(case, world, subjects, variant, name):
    if not case.has(f"{variant}/noise_pred/{name}/t{case.meta['probe_timesteps'][0]}"):
        assert variant == "te2lora", f"{case.path.stem} lacks {variant}/noise_pred/{name}"
        return
    model = apply(world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"]))
    if name == "delayed":
        adapted = text_side.adapted_clip(world["clip"], world["mmdiff"], "released" if variant == "official" else "corrected")
        positive, negative = (
            text_side.encode(adapted, adapted.tokenize(t, return_word_ids=True))
            for t in (case.meta["prompt_without_trigger"], case.meta["negative_prompt"] or "")
        )
    else:
        positive, negative = mixed_prompt(case, world, subjects, variant, fuse_negative=name == "merged")
    for timestep in case.meta["probe_timesteps"]:
        found = probe(model, sized(case, positive), sized(case, negative), case["input/probe_sample"], timestep)
        close(found, case[f"{variant}/noise_pred/{name}/t{timestep}"], NOISE, f"{variant} {name} t{timestep}")


def test_attention_layers_give_the_recorded_keys_values_and_outputs(case, world, subjects):
    model = apply(world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"]))
    positive, negative = mixed_prompt(case, world, subjects, "official", fuse_negative=True)
    paths = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2": "input_blocks.4.1.transformer_blocks.0.attn2",
        "mid_block.attentions.0.transformer_blocks.1.attn2": "middle_block.1.transformer_blocks.1.attn2",
    }
    unet, seen, handles = model.model.diffusion_model, {}, []
    for number, diffusers_name in case.meta["attn_probes"].items():
        attn = unet.get_submodule(paths[diffusers_name])
        for part in ("to_q", "to_k", "to_v", "to_out"):
            handles.append(attn.get_submodule(part).register_forward_hook(
                lambda m, args, out, key=(number, part): seen.setdefault(key, []).append((args[0].clone(), out.clone()))))
    try:
        probe(model, sized(case, positive), sized(case, negative), case["input/probe_sample"], case.meta["attn_probe_timestep"])
    finally:
        for handle in handles:
            handle.remove()
    for number in case.meta["attn_probes"]:
        # to_k and to_v ran first on the subjects (before the loop), last on the text
        (_, k_text), (_, v_text) = seen[number, "to_k"][-1], seen[number, "to_v"][-1]
        found = {"input": seen[number, "to_q"][-1][0], "k_text": k_text, "v_text": v_text, "output": seen[number, "to_out"][-1][1]}
        rows = rows_uncond_first(found["input"], case[f"official/attn2/{number}/input"])
        for part, tensor in found.items():
            close(tensor[rows], case[f"official/attn2/{number}/{part}"], LAYER, f"attn2/{number}/{part}")


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
    state = application.make_state(prompt, model.model.diffusion_model, torch.float32, torch.device("cpu"))
    slot = {"0": ("input", 4, 0), "1": ("middle", 0, 1)}[number]
    shown = torch.cat([torch.arange(4 * i, 4 * i + 4) for s in case.slots() for i in s])
    for part, found in zip(("k_image", "v_image"), state.keys[slot], strict=True):
        close(found.transpose(1, 2).flatten(2), case[f"official/attn2/{number}/{part}"][1:2, shown], LAYER, f"attn2/{number}/{part}")


# ---------------------------------------------------------------- whole samplings

def sample(case, model, positive, negative, cfg: float | None = None) -> torch.Tensor:
    """The recorded 4 Euler steps through comfy.sample; latents in diffusers' scale."""
    sigmas = case["official/run/sigmas"]
    first = sigmas[0].item()
    noise = case["input/latents"] * (first ** 2 + 1) ** 0.5 / first
    sampler = comfy.samplers.sampler_object("euler")
    cfg = case.call["guidance_scale"] if cfg is None else cfg
    out = comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, sized(case, positive), sized(case, negative), torch.zeros_like(noise), disable_pbar=True, seed=0,
    )
    return out * 0.13025


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fuse_negative", [True, False], ids=["negative_fused", "negative_pure"])
def test_whole_samplings_end_in_the_recorded_latents(case, world, subjects, variant, fuse_negative):
    model = apply(world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"]))
    positive, negative = mixed_prompt(case, world, subjects, variant, fuse_negative, case.start(model))
    name = "latents_final" if fuse_negative else "latents_final_neg_pure"
    close(sample(case, model, positive, negative), case[f"{variant}/run/{name}"], LATENTS, f"{variant} {name}")


def test_sampling_without_guidance_ends_in_the_recorded_latents(case, world, subjects):
    if not case.has("official/run/latents_final_guidance_1"):
        return
    model = apply(world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"]))
    positive, negative = mixed_prompt(case, world, subjects, "official", True, case.start(model))
    close(sample(case, model, positive, negative, 1.0), case["official/run/latents_final_guidance_1"], LATENTS, "guidance 1")


def test_an_empty_negative_prompt_is_fused_as_recorded(case, world, subjects):
    if not case.has("official/run/latents_final_negative_empty"):
        return
    model = apply(world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"]))
    encoded = encode_prompt(world["clip"], world["mmdiff"], recorded_prompt(case), "", subjects, case.start(model), "released")
    close(sample(case, model, encoded.positive, encoded.negative), case["official/run/latents_final_negative_empty"], LATENTS, "empty")


def test_a_zeroed_negative_ends_in_the_recorded_latents(case, world, subjects):
    """ConditioningZeroOut of the personalised prompt is what the official code does without a negative prompt (quirk 3)."""
    if not case.has("official/run/latents_final_negative_none"):
        return
    model = apply(world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"]))
    positive = encode_prompt(world["clip"], world["mmdiff"], recorded_prompt(case), "", subjects, case.start(model), "released").positive
    zeroed = [[torch.zeros_like(c), {**o, "pooled_output": torch.zeros_like(o["pooled_output"])}] for c, o in positive]
    close(sample(case, model, positive, zeroed), case["official/run/latents_final_negative_none"], LATENTS, "no negative")


@pytest.mark.parametrize("behaviour", ["released", "corrected"])
@pytest.mark.parametrize("plain_steps", [1, 2, 3])
def test_delayed_conditioning_is_plain_steps_followed_by_personalised_steps(case, world, subjects, behaviour, plain_steps):
    """One run with a delayed start equals the official loop spelled out: plain prompt and no image branch, LoRA on, then the rest."""
    model = apply(world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"]))
    times, sigmas = case.meta["timesteps"], case["official/run/sigmas"]
    start = 1.0 - (times[plain_steps - 1] + times[plain_steps]) / 2 / 999.0
    texts = (case.meta["negative_prompt"] or "", subjects)
    both = encode_prompt(world["clip"], world["mmdiff"], recorded_prompt(case), *texts, start, behaviour)
    fused = encode_prompt(world["clip"], world["mmdiff"], recorded_prompt(case), *texts, 0.0, behaviour)
    plain = encode_prompt(world["clip"], world["mmdiff"], case.meta["prompt_without_trigger"], texts[0], (), 0.0, behaviour)
    whole = sample(case, model, both.positive, both.negative)
    first = case["input/latents"] * (sigmas[0].item() ** 2 + 1) ** 0.5 / sigmas[0].item()

    def steps(prompt, part, noise, latent):
        return comfy.sample.sample_custom(
            model, noise, case.call["guidance_scale"], comfy.samplers.sampler_object("euler"), part, sized(case, prompt.positive),
            sized(case, prompt.negative), latent, disable_pbar=True, seed=0)

    nothing = torch.zeros_like(first)
    halfway = steps(plain, sigmas[: plain_steps + 1], first, nothing)
    out = steps(fused, sigmas[plain_steps:], nothing, halfway)
    close(whole, out * 0.13025, LATENTS, f"delayed by {plain_steps} steps")


def test_a_wrong_variant_is_told_apart(case, world, subjects):
    """The tests can fail: without the UNet LoRA the same input gives numbers far from the recorded ones."""
    key = "wrong/noise_pred_delayed_without_unet_lora/t501"
    if not case.has(key):
        return
    assert (case[key] - case["official/noise_pred/delayed/t501"]).abs().max() > 100 * NOISE
