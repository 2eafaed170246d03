"""The pack run on a recorded case, stage by stage, and how near it must come."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import node_helpers
import torch

from mmdiff_core.host import text as text_side
from mmdiff_core.host.conditioning import delayed
from mmdiff_core.host.encode import encode_subject
from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.host.nouns import find_nouns
from mmdiff_core.host.prompt import encode_prompt
from mmdiff_core.method.subjects import PromptSubject

from support.cases import Case, checkpoint_folder, recorded_prompt, weights_folder
from tiny_model import build

STAGE, LAYER, NOISE, LATENTS = 1e-4, 3e-4, 1e-4, 2e-3

VARIANTS = ("official", "te2lora")

BEHAVIOURS = {
    # recorded variant, is the negative prompt fused -> how the pack is asked to run
    ("official", True): "released",
    ("te2lora", False): "corrected",
}


def close(found: torch.Tensor, recorded: torch.Tensor, tolerance: float, what: str) -> None:
    assert found.shape == recorded.shape, (
        f"{what}: shape {tuple(found.shape)}, recorded {tuple(recorded.shape)}"
    )
    worst = (found.float().cpu() - recorded.float()).abs().max().item()
    assert worst <= tolerance, f"{what}: differs by {worst:.2e}, allowed {tolerance:.0e}"


def load_world(case: Case) -> dict:
    """The small model of the case's folder."""
    folder = weights_folder(case.path.parent)
    return {
        "model": build.model(folder),
        "clip": build.clip(folder),
        "vision": build.clip_vision(folder),
        "mmdiff": load_mmdiff(checkpoint_folder(case.path.parent)),
    }


def encode_subjects(case: Case, world: dict) -> tuple:
    """One subject for each slot of the case, from the recorded faces."""
    found = []
    for i, slot in enumerate(case.slots(), 1):
        images, faces = case.images(slot), case.faces(slot)
        encoding = encode_subject(world["mmdiff"], world["vision"], images, faces, f"subject {i}")
        found.append(PromptSubject(encoding.subject))
    return tuple(found)


def mixed_prompt(case, world, subjects, variant: str, fuse_negative: bool, start: float = 0.0):
    """Both sides as recorded, also for the combinations that are neither "released" nor
    "corrected".
    """
    args = (
        world["clip"],
        world["mmdiff"],
        recorded_prompt(case),
        case.meta["negative_prompt"] or "",
        subjects,
        start,
    )
    if (variant, fuse_negative) in BEHAVIOURS:
        encoded = encode_prompt(*args, BEHAVIOURS[variant, fuse_negative])
        return encoded.positive, encoded.negative
    lora = "released" if variant == "official" else "corrected"
    positive = encode_prompt(*args, lora).positive
    adapted = text_side.adapted_clip(world["clip"], world["mmdiff"], lora)
    tokens = adapted.tokenize(case.meta["negative_prompt"] or "", return_word_ids=True)
    plain = text_side.encode(adapted, tokens)
    if not (fuse_negative and subjects):
        return positive, plain
    _, nouns = find_nouns(adapted.tokenize, recorded_prompt(case))
    fused = text_side.fuse_tokens(adapted, world["mmdiff"], tokens, nouns, subjects)
    return positive, delayed(plain, text_side.encode(adapted, fused), None, start)


def plain_prompt(case: Case, world: dict, variant: str) -> tuple[list, list]:
    """Both sides without a subject, with the text encoders' LoRA of the variant."""
    lora = "released" if variant == "official" else "corrected"
    texts = case.meta["prompt_without_trigger"], case.meta["negative_prompt"] or ""
    encoded = encode_prompt(world["clip"], world["mmdiff"], *texts, (), 0.0, lora)
    return encoded.positive, encoded.negative


def sized(case, conditioning):
    return node_helpers.conditioning_set_values(conditioning, case.size_options)


# ---------------------------------------------------------------- the UNet


class ProbeSampler(comfy.samplers.Sampler):
    """One model call on a recorded input at a recorded timestep, both rows of it, through ComfyUI's
    sampling path.
    """

    def __init__(self, sample: torch.Tensor, layer=None):
        self.input, self.seen = sample, {}

    def max_denoise(self, model_wrap, sigmas):
        return False

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        sigma = sigmas[:1]
        x = self.input * (sigma**2 + 1).sqrt()
        guider = model_wrap
        conds = [guider.conds["negative"], guider.conds["positive"]]
        denoised = comfy.samplers.calc_cond_batch(
            guider.inner_model, conds, x, sigma, extra_args["model_options"]
        )
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
    guider.sample(
        torch.zeros_like(sample),
        torch.zeros_like(sample),
        sampler,
        torch.cat([sigma, torch.zeros(1)]),
        seed=0,
        disable_pbar=True,
    )
    return sampler.predicted


# ---------------------------------------------------------------- whole samplings


def sample(case, model, positive, negative, cfg: float | None = None) -> torch.Tensor:
    """The recorded 4 Euler steps through comfy.sample; latents in diffusers' scale."""
    sigmas = case["official/run/sigmas"]
    first = sigmas[0].item()
    noise = case["input/latents"] * (first**2 + 1) ** 0.5 / first
    sampler = comfy.samplers.sampler_object("euler")
    cfg = case.call["guidance_scale"] if cfg is None else cfg
    out = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        sized(case, positive),
        sized(case, negative),
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=0,
    )
    return out * 0.13025
