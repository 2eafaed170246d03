"""Training runs inference's own modules and attention, and its gradients are right."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmdiff_core.small_world.examples import SmallWorldExamples, enlarge
from mmdiff_core.training import losses
from mmdiff_core.training.config import AdapterConfig, ConstraintConfig, ObjectiveConfig, RunConfig
from mmdiff_core.training.example import Example, ExampleSubject
from mmdiff_core.training.trainable import from_flat, to_flat

RUN = RunConfig(
    base="small-world", adapter=AdapterConfig(name="small-world", rank=4, text_rank=4), constraint=ConstraintConfig(text=0.3, image=0.2),
)


def shake(task, seed: int = 0, scale: float = 0.05) -> None:
    """Nothing trained is zero any more, so that every part shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in task.adapter.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def build(run: RunConfig = RUN):
    from mmdiff_core.host.build import build_task
    task = build_task(run)
    shake(task)
    return task


@pytest.fixture(scope="module")
def task():
    return build()


@pytest.fixture(scope="module")
def batch():
    return SmallWorldExamples(seed=3, caption_dropout=0.2, subject_dropout=0.2).batch(0, 6)


def gradients(task, batch) -> dict[str, torch.Tensor]:
    task.zero_grad(set_to_none=True)
    task(batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in task.named_parameters()}


# ---------------------------------------------------------------- the same as inference

def through_the_nodes(task, tmp_path, scene_subjects, caption, noise, steps, cfg):
    """The picture that the graph's own functions sample from an adapter exported by the trainer."""
    import comfy.sample

    from mmdiff_core.checkpoints import checkpoint
    from mmdiff_core.host import small_world
    from mmdiff_core.host.apply import Strength, apply
    from mmdiff_core.host.encode import encode_prompt, encode_subject
    from mmdiff_core.host.models import load_mmdiff
    from mmdiff_core.method.subjects import PromptSubject
    path = tmp_path / "trained.safetensors"
    checkpoint.save_single(path, task.adapter.config, to_flat(task.adapter.state_dict()), dtype=torch.float32)
    mmdiff = load_mmdiff(path)
    model, clip, clip_vision, _ = small_world.load()
    subjects = tuple(
        PromptSubject(encode_subject(mmdiff, clip_vision, refs.movedim(1, -1), None, f"s{i}").subject) for i, refs in enumerate(scene_subjects)
    )
    prompt = encode_prompt(clip, mmdiff, caption, "", subjects)
    patched = apply(model, mmdiff.adapter, Strength(fuse_scale=1.0))
    return comfy.sample.sample(
        patched, noise, steps, cfg, "euler", "normal", prompt.positive, prompt.negative, torch.zeros_like(noise), denoise=1.0, seed=0,
    )


def test_a_trained_adapter_draws_the_same_picture_through_the_nodes_as_in_training(task, tmp_path):
    from mmdiff_core.host.sampling import sample_latents
    rng = np.random.default_rng(0)
    # bytes, as the nodes see pictures
    references = [torch.from_numpy(rng.integers(0, 256, (count, 3, 32, 32))).float() / 255 for count in (2, 1)]
    caption, spans = "a ghost and a robot on the beach", ((2, 7), (14, 19))
    subjects = tuple(ExampleSubject(s, torch.zeros(128, 128), r) for s, r in zip(spans, references, strict=True))
    noise = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(5))
    ours = sample_latents(task, [Example(torch.zeros(3, 128, 128), caption, subjects)], noise, steps=4, cfg=3.0)
    theirs = through_the_nodes(task, tmp_path, references, "a ghost<|subj|> and a robot<|subj|> on the beach", noise, 4, 3.0)
    assert torch.allclose(task.bridge.base.process_latent_out(ours), theirs, atol=2e-3)
    without = sample_latents(task, [dataclasses.replace(e, subjects=()) for e in [Example(torch.zeros(3, 128, 128), caption, ())]], noise, 4, 3.0)
    assert (ours - without).abs().max() > 0.05


def test_the_encoders_states_are_the_hosts_own(task):
    from mmdiff_core.host import small_world
    from mmdiff_core.host.differentiable import text_states, vision_states
    _, clip, clip_vision, _ = small_world.load()
    tokens = clip.tokenize("a cat at night")
    text = clip.cond_stage_model.clip_l
    with torch.no_grad():
        theirs = clip.cond_stage_model.encode_token_weights(tokens)[0]
        ids = torch.tensor([[t for t, _ in tokens["l"][0]]])
        ours = text_states(text.transformer, text.transformer.get_input_embeddings()(ids, out_dtype=torch.float32))[0]
        pixels = torch.rand(2, 3, 32, 32)
        _, penultimate, cls, *_ = clip_vision.model(pixel_values=pixels, intermediate_output=-2)
        mine = vision_states(clip_vision.model, pixels)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(mine[0], cls, atol=1e-5) and torch.allclose(mine[1], penultimate, atol=1e-5)


@pytest.mark.parametrize("vision", [
    ["vision_model.encoder.layers.3", "visual_projection"], ["vision_model.encoder.layers.1.mlp"], ["vision_model.post_layernorm"],
    ["vision_model.embeddings", "vision_model.encoder.layers.2"], [],
])
def test_only_the_tuned_layers_of_the_image_encoder_run_twice_and_the_answer_is_the_whole_tuned_encoders(vision):
    from mmdiff_core.host.differentiable import vision_states
    from mmdiff_core.references.pixels import normalise
    own = build(dataclasses.replace(RUN, adapter=dataclasses.replace(RUN.adapter, vision=tuple(vision))))
    encoder, pixels = own.bridge.image_encoder.encoder, torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for weight in own.adapter.vision.values():
            weight.add_(0.05 * torch.randn_like(weight))
        found, patches = own.bridge.vision(pixels)
        untouched = vision_states(encoder, normalise(pixels))[1]
        kept = {k: v.clone() for k, v in encoder.state_dict().items()}
        encoder.load_state_dict(own.adapter.vision_weights(), strict=False)
        whole = vision_states(encoder, normalise(pixels))[0]
        encoder.load_state_dict(kept)
    assert torch.allclose(found, whole, atol=1e-5) and torch.equal(patches, untouched)
    own.bridge.close()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_attention_for_training_on_the_cpu_is_the_same_attention(kind):
    from mmdiff_core.method.attention import attend, attention_on, probabilities, weigh
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 64, 128, dtype=kind) for _ in range(3))
    bias = torch.zeros(2, 1, 64, 64, dtype=kind)
    bias[..., 40:] = -1e6
    expected, near = attend(q.float(), k.float(), v.float(), 4, bias.float()), 1e-5 if kind is torch.float32 else 2e-2
    assert torch.allclose(attention_on("cpu")(q, k, v, 4, bias).float(), expected, atol=near)
    assert torch.allclose(weigh(probabilities(q, k, 4, bias.float()), v).float(), expected, atol=near)
    assert attention_on("cuda") is attend


def test_an_exported_adapter_comes_back_unchanged(task, tmp_path):
    from mmdiff_core.checkpoints import checkpoint
    path = tmp_path / "adapter.safetensors"
    flat = to_flat(task.adapter.state_dict())
    checkpoint.save_single(path, task.adapter.config, flat, dtype=torch.float32, extra={"run": RUN.to_json()})
    config, read = checkpoint.read(path)
    assert config == task.adapter.config
    before = {k: v.clone() for k, v in task.adapter.state_dict().items()}
    from_flat(read, task.adapter)
    assert all(torch.equal(before[k], v) for k, v in task.adapter.state_dict().items())


# ---------------------------------------------------------------- gradients

def test_gradients_are_the_same_with_and_without_checkpointing(task, batch):
    plain = gradients(task, batch)
    checked = build(dataclasses.replace(RUN, objective=ObjectiveConfig(checkpointing=True)))
    again = gradients(checked, batch)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], atol=1e-6 + 1e-4 * gradient.abs().max()), name


FAMILIES = (
    "adapter.subjects.subject_to_text.hidden.weight", "adapter.subjects.query.tokens.weight", "adapter.subjects.refiner.blocks.0.to_kv.weight",
    "adapter.subjects.fuse.l.out.weight", "adapter.unet.{block}/attn1/to_q/up", "adapter.unet.{block}/attn1/to_out/down",
    "adapter.unet.{block}/attn2/to_k/up", "adapter.unet.{block}/attn2/to_v/down", "adapter.unet.{block}/attn2/to_k_image/up",
    "adapter.unet.{block}/attn2/to_v_image/down", "adapter.text.l/layers/0/self_attn/q_proj/up", "adapter.text.l/layers/1/mlp/fc2/down",
    "adapter.vision.visual_projection/weight",
)


@pytest.fixture(scope="module")
def double_gradients(batch):
    """A task in float64 and its gradients."""
    task = build()
    task.double()
    bridge = task.bridge
    bridge.compute = torch.float64
    bridge.alphas = bridge.alphas.double()
    for module in (bridge.unet, bridge.image_encoder, *bridge.texts.values()):
        module.double()
    few = tuple(dataclasses.replace(e, pixels=e.pixels.double()) for e in batch[:3])
    return task, few, gradients(task, few)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finite_difference_agrees_with_the_gradient_of(family, double_gradients):
    task, batch, found = double_gradients
    name = family.format(block="input_blocks/2/1/transformer_blocks/0")
    parameter = dict(task.named_parameters())[name]
    place = int(found[name].abs().flatten().argmax())
    step, value = 1e-4, parameter.data.flatten()[place].item()

    def loss_at(offset: float) -> float:
        with torch.no_grad():
            parameter.view(-1)[place] = value + offset
            return task(batch)["loss"].item()

    try:
        measured = (loss_at(step) - loss_at(-step)) / (2 * step)
    finally:
        with torch.no_grad():
            parameter.view(-1)[place] = value
    exact = found[name].flatten()[place].item()
    assert abs(exact) > 1e-7
    assert measured == pytest.approx(exact, rel=0.02)


def test_the_base_gets_no_gradient(task, batch):
    gradients(task, batch)
    frozen = [task.bridge.unet, task.bridge.image_encoder, *task.bridge.texts.values()]
    assert all(p.grad is None and not p.requires_grad for module in frozen for p in module.parameters())


# ---------------------------------------------------------------- losses

def test_the_constraint_is_lowest_where_attention_fills_the_mask_and_nothing_else():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    flat = losses.masks_on_grid(mask, (4, 4))
    present = torch.ones(1, 1, dtype=torch.bool)
    inside = flat.transpose(1, 2)[:, None]
    values = [losses.balanced_l1(p, flat, present).item() for p in (inside, torch.full_like(inside, 0.3), 1 - inside)]
    assert values == [-1.0, 0.0, 1.0]


def test_an_absent_subject_or_a_vanished_mask_does_not_count():
    mask = torch.zeros(1, 2, 16)
    mask[0, 0, :8] = 1
    probability = torch.rand(1, 2, 16, 2)
    alone = losses.balanced_l1(probability[..., :1], mask[:, :1], torch.ones(1, 1, dtype=torch.bool))
    for present in ([True, False], [True, True]):
        assert torch.allclose(losses.balanced_l1(probability, mask, torch.tensor([present])), alone)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_target_and_the_noisy_latents_give_the_latents_back(kind):
    latents, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    alpha = torch.tensor([0.9, 0.3]).sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alpha ** 2).sqrt()
    noisy, target = alpha * latents + sigma * noise, losses.denoising_target(kind, latents, noise, alpha, sigma)
    back = alpha * noisy - sigma * target if kind == "v" else (noisy - sigma * target) / alpha
    assert torch.allclose(back, latents, atol=1e-5)


def test_min_snr_weights_the_same_picture_error_in_both_predictions():
    snr = torch.tensor([0.1, 1.0, 25.0])
    eps, v = (losses.min_snr_weight(kind, snr, 5.0) for kind in ("eps", "v"))
    # error of the picture = error of eps / snr = error of v / (snr + 1)
    assert torch.allclose(eps * snr, v * (snr + 1)) and torch.allclose(eps * snr, snr.clamp_max(5.0))


def test_noise_and_timestep_follow_from_the_examples_number(task):
    from mmdiff_core.training.task import draw_noise
    noise, steps = draw_noise([4, 5, 6], (2, 3), 1000, seed=1)
    other, later = draw_noise([5, 4], (2, 3), 1000, seed=1)
    assert torch.equal(noise[1], other[0]) and steps[0] == later[1]
    assert not torch.equal(noise, draw_noise([4, 5, 6], (2, 3), 1000, seed=2)[0])


def test_timesteps_are_uniform_or_from_the_middle_or_from_the_high_end_as_asked():
    from mmdiff_core.training.task import draw_noise
    uniform, middle = (draw_noise(range(2000), (1,), 1000, 0, share)[1].float() for share in (0.0, 1.0))
    assert uniform.std().item() == pytest.approx(288.7, rel=0.05) and middle.std().item() == pytest.approx(166.7, rel=0.05)
    assert uniform.min() >= 0 and uniform.max() <= 999 and abs(middle.mean().item() - 500) < 15
    high = draw_noise(range(2000), (1,), 1000, 0, high=1.0)[1].float()
    mixed = draw_noise(range(2000), (1,), 1000, 0, middle=0.25, high=0.5)[1].float()
    assert abs(high.mean().item() - 750) < 15 and high.max() <= 999 and abs(mixed.mean().item() - 625) < 20


def test_a_subjects_pixels_can_count_more_and_the_mean_weight_stays_one():
    masks = torch.zeros(2, 2, 16, 16)
    masks[0, 0, :8] = 1
    where = losses.weigh_subjects(masks, (8, 8), 5.0)
    assert torch.allclose(where.mean((1, 2, 3)), torch.ones(2)) and torch.allclose(where[1], torch.ones(1, 8, 8))
    assert (where[0, 0, 0, 0] / where[0, 0, 7, 0]).item() == pytest.approx(5)
    error = torch.zeros(2, 3, 8, 8)
    error[:, :, :4] = 1                     # wrong inside the subject only
    plain, weighed = (losses.denoising_loss(error, torch.zeros_like(error), torch.ones(2), w) for w in (None, where))
    assert weighed[0] > plain[0] and weighed[1].item() == pytest.approx(plain[1].item())


def test_the_subjects_weight_fades_to_one_over_the_stated_examples_and_follows_from_the_examples_number():
    index = torch.tensor([0, 50, 100, 1000])
    assert losses.fading_weight(index, 9.0, 100).tolist() == [9.0, 5.0, 1.0, 1.0]
    assert losses.fading_weight(index, 9.0, 0).tolist() == [9.0] * 4
    masks = torch.zeros(4, 1, 16, 16)
    masks[:, 0, :8] = 1
    where = losses.weigh_subjects(masks, (8, 8), losses.fading_weight(index, 9.0, 100))
    assert (where[:, 0, 0, 0] / where[:, 0, 7, 0]).tolist() == pytest.approx([9, 5, 1, 1])


def test_a_lower_rank_keeps_the_nearest_product_and_the_file_can_be_trained_on(task, tmp_path):
    from mmdiff_core.checkpoints import checkpoint
    from mmdiff_core.method.lora import LowRank
    from mmdiff_core.training.shrink import shrink, truncate
    torch.manual_seed(0)
    pair = LowRank(torch.randn(16, 24), torch.randn(40, 16))
    delta = pair.up @ pair.down
    for rank, exact in ((4, False), (16, True), (20, True)):
        smaller, share = truncate(pair, rank)
        assert smaller.down.shape == (rank, 24) and smaller.up.shape == (40, rank)
        error = (smaller.up @ smaller.down - delta).square().sum() / delta.square().sum()
        assert error.item() == pytest.approx(1 - share, abs=1e-5) and (share > 0.999) == exact
        if not exact:       # nothing of this rank is nearer: the singular values that are left out
            assert error.item() == pytest.approx((torch.linalg.svdvals(delta)[4:].square().sum() / delta.square().sum()).item(), rel=1e-4)
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    checkpoint.save_single(whole, task.adapter.config, to_flat(task.adapter.state_dict()), extra={"run": RUN.to_json(), "steps": "7"})
    said = shrink(whole, small, 3)
    assert "rank 3" in said and small.stat().st_size < whole.stat().st_size
    from mmdiff_core.host.evaluate import load_task
    again = load_task(small)
    assert again.run.adapter.rank == 3 and again.adapter.config == task.adapter.config
    again.bridge.close()


def test_shares_of_noise_levels_beyond_the_whole_are_refused():
    from mmdiff_core.training.config import ObjectiveConfig
    with pytest.raises(ValueError, match=r"middle and high are 0\.7 and 0\.6"):
        ObjectiveConfig(middle=0.7, high=0.6)


def test_a_batch_is_the_mean_of_its_halves(task, batch):
    with torch.no_grad():
        whole, halves = task(batch)["loss"], [task(batch[i:i + 3])["loss"] for i in (0, 3)]
    assert whole.item() == pytest.approx(sum(h.item() for h in halves) / 2, abs=2e-6)


def test_masks_of_a_scene_are_the_subjects_dots():
    example = SmallWorldExamples(caption_dropout=0, subject_dropout=0).example(1)
    assert example.pixels.shape == (3, 128, 128) and all(s.mask.shape == (128, 128) for s in example.subjects)
    assert torch.equal(enlarge(example.subjects[0].mask[::4, ::4]), example.subjects[0].mask)
    assert [example.caption[a:b] for a, b in (s.span for s in example.subjects)] == ["ghost", "tree"]
