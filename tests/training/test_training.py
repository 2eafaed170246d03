"""Training runs inference's own modules and attention, and its gradients are right."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmdiff_core.method.subjects import Region
from mmdiff_core.training.config import ObjectiveConfig
from mmdiff_core.training.example import Example, ExampleSubject
from mmdiff_core.training.trainable import from_flat, to_flat

from support.small_task import RUN, build, gradients, through_the_nodes

# ---------------------------------------------------------------- the same as inference


HELD = [(), ("tokens",), ("nouns",), ("tokens", "nouns"), ("self",)]
FIELDS = {"tokens": "hold_tokens", "nouns": "hold_nouns", "self": "bound_self_attention"}


@pytest.mark.parametrize("held", HELD, ids="+".join)
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_a_trained_adapter_draws_the_same_picture_through_the_nodes_as_in_training(
    task, tmp_path, sampler, held
):
    from mmdiff_core.host.sampling import sample_latents

    rng = np.random.default_rng(0)
    # bytes, as the nodes see pictures
    references = [
        torch.from_numpy(rng.integers(0, 256, (count, 3, 32, 32))).float() / 255 for count in (2, 1)
    ]
    caption, spans = "a ghost and a robot on the beach", ((2, 7), (14, 19))
    masks = torch.zeros(2, 128, 128)
    masks[0, 20:90, :60] = masks[1, 30:, 70:] = 1
    given = zip(spans, masks, references, strict=True)
    subjects = tuple(ExampleSubject(*subject) for subject in given)
    within = {field: name in held for name, field in FIELDS.items()}
    regions = [Region(mask if held else None, **within) for mask in masks]
    noise = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(5))
    example = Example(torch.zeros(3, 128, 128), caption, subjects)
    ours = sample_latents(task, [example], noise, 4, 3.0, sampler, held=held)
    theirs = through_the_nodes(
        task,
        tmp_path,
        references,
        regions,
        "a ghost<|subj|> and a robot<|subj|> on the beach",
        noise,
        4,
        3.0,
        sampler,
    )
    assert torch.allclose(task.bridge.base.process_latent_out(ours), theirs, atol=2e-3)
    nobody = [dataclasses.replace(example, subjects=())]
    without = sample_latents(task, nobody, noise, 4, 3.0, sampler)
    assert (ours - without).abs().max() > 0.05
    if held:
        free = sample_latents(task, [example], noise, 4, 3.0, sampler)
        assert (ours - free).abs().max() > 0.01


def test_the_encoders_states_are_the_hosts_own(task):
    from mmdiff_core.host import small_world
    from mmdiff_core.host.frozen_base.encoders import text_states, vision_states

    _, clip, clip_vision, _ = small_world.load()
    tokens = clip.tokenize("a cat at night")
    text = clip.cond_stage_model.clip_l
    with torch.no_grad():
        theirs = clip.cond_stage_model.encode_token_weights(tokens)[0]
        ids = torch.tensor([[t for t, _ in tokens["l"][0]]])
        ours = text_states(
            text.transformer, text.transformer.get_input_embeddings()(ids, out_dtype=torch.float32)
        )[0]
        pixels = torch.rand(2, 3, 32, 32)
        _, penultimate, cls, *_ = clip_vision.model(pixel_values=pixels, intermediate_output=-2)
        mine = vision_states(clip_vision.model, pixels)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(mine[0], cls, atol=1e-5) and torch.allclose(
        mine[1], penultimate, atol=1e-5
    )


@pytest.mark.parametrize(
    "vision",
    [
        ["vision_model.encoder.layers.3", "visual_projection"],
        ["vision_model.encoder.layers.1.mlp"],
        ["vision_model.post_layernorm"],
        ["vision_model.embeddings", "vision_model.encoder.layers.2"],
        [],
    ],
)
def test_only_tuned_layers_of_the_image_encoder_run_twice_and_give_what_the_whole_one_gives(
    vision,
):
    from mmdiff_core.host.frozen_base.encoders import vision_states
    from mmdiff_core.references.pixels import normalise

    own = build(
        dataclasses.replace(RUN, adapter=dataclasses.replace(RUN.adapter, vision=tuple(vision)))
    )
    encoder, pixels = own.bridge.image_encoder.encoder, torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for weight in own.adapter.vision.values():
            weight.add_(0.05 * torch.randn_like(weight))
        found, patches = own.bridge.vision(pixels)
        untouched = vision_states(encoder, normalise(pixels))[1]
        kept = {k: v.clone() for k, v in encoder.state_dict().items()}
        encoder.load_state_dict(kept | own.adapter.vision_weights())
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
    expected, near = (
        attend(q.float(), k.float(), v.float(), 4, bias.float()),
        1e-5 if kind is torch.float32 else 2e-2,
    )
    assert torch.allclose(attention_on("cpu")(q, k, v, 4, bias).float(), expected, atol=near)
    assert torch.allclose(
        weigh(probabilities(q, k, 4, bias.float()), v).float(), expected, atol=near
    )
    assert attention_on("cuda") is attend


def test_an_exported_adapter_comes_back_unchanged(task, tmp_path):
    from mmdiff_core.checkpoints import checkpoint

    path = tmp_path / "adapter.safetensors"
    flat = to_flat(task.adapter.state_dict())
    checkpoint.save_single(
        path, task.adapter.config, flat, dtype=torch.float32, extra={"run": RUN.to_json()}
    )
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
    "adapter.subjects.subject_to_text.hidden.weight",
    "adapter.subjects.query.tokens.weight",
    "adapter.subjects.refiner.blocks.0.to_kv.weight",
    "adapter.subjects.fuse.l.out.weight",
    "adapter.unet.{block}/attn1/to_q/up",
    "adapter.unet.{block}/attn1/to_out/down",
    "adapter.unet.{block}/attn2/to_k/up",
    "adapter.unet.{block}/attn2/to_v/down",
    "adapter.unet.{block}/attn2/to_k_image/up",
    "adapter.unet.{block}/attn2/to_v_image/down",
    "adapter.text.l/layers/0/self_attn/q_proj/up",
    "adapter.text.l/layers/1/mlp/fc2/down",
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
    assert all(
        p.grad is None and not p.requires_grad for module in frozen for p in module.parameters()
    )
