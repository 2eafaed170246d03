"""Training with a router in each layer: the same attention as inference, gradients, constraints."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmdiff_core.method.subjects import Region
from mmdiff_core.small_world.examples import SmallWorldExamples
from mmdiff_core.training.example import Example, ExampleSubject

from support.small_task import RUN, build, gradients, through_the_nodes

ROUTED = dataclasses.replace(RUN, adapter=dataclasses.replace(RUN.adapter, routed=True))


@pytest.fixture(scope="module")
def task():
    return build(ROUTED)


@pytest.fixture(scope="module")
def pairs():
    return SmallWorldExamples(caption_dropout=0, subject_dropout=0, count=2).batch(0, 2)


def asked(masks: torch.Tensor) -> tuple[Example, list[torch.Tensor]]:
    """An example with two subjects of two and one references, and the references."""
    rng = np.random.default_rng(0)
    references = []
    for count in (2, 1):  # bytes, as the nodes see images
        drawn = rng.integers(0, 256, (count, 3, 32, 32))
        references.append(torch.from_numpy(drawn).float() / 255)
    spans = ((2, 7), (14, 19))
    given = zip(spans, masks, references, strict=True)
    subjects = tuple(ExampleSubject(*subject) for subject in given)
    caption = "a ghost and a robot on the beach"
    return Example(torch.zeros(3, 128, 128), caption, subjects), references


@pytest.mark.parametrize("held", [(), ("tokens", "nouns")], ids=["free", "held"])
def test_an_exported_routed_adapter_draws_the_same_image_through_the_nodes(task, tmp_path, held):
    from mmdiff_core.host.sampling import sample_latents

    masks = torch.zeros(2, 128, 128)
    masks[0, 20:90, :60] = masks[1, 30:, 70:] = 1
    example, references = asked(masks)
    within = {"hold_tokens": bool(held), "hold_nouns": bool(held)}
    regions = [Region(mask if held else None, **within) for mask in masks]
    noise = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(5))
    ours = sample_latents(task, [example], noise, 4, 3.0, "euler", held=held)
    caption = "a ghost<|subj|> and a robot<|subj|> on the beach"
    theirs = through_the_nodes(task, tmp_path, references, regions, caption, noise, 4, 3.0, "euler")
    assert torch.allclose(task.bridge.base.process_latent_out(ours), theirs, atol=2e-3)


def test_a_batch_of_one_two_and_no_subjects_gives_what_each_example_gives_alone(task):
    example, _ = asked(torch.ones(2, 128, 128))
    examples = [dataclasses.replace(example, subjects=example.subjects[:n]) for n in (2, 1, 0)]
    noisy = torch.randn(3, 12, 16, 16, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([500, 500, 500])
    with torch.no_grad():
        joined = task.predict(noisy, steps, task.conditions(examples, measured=False))[0]
        for row, one in enumerate(examples):
            conditions = task.conditions([one], measured=False)
            alone = task.predict(noisy[row : row + 1], steps[:1], conditions)[0]
            assert torch.allclose(joined[row : row + 1], alone, atol=1e-4)


def test_where_maps_are_measured_the_prediction_is_the_same_and_the_maps_are_the_shares(
    task, pairs
):
    noisy = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([500, 700])
    with torch.no_grad():
        measured = task.conditions(pairs)
        plain = task.conditions(pairs, measured=False)
        with_maps = task.predict(noisy, steps, measured)[0]
        assert torch.allclose(with_maps, task.predict(noisy, steps, plain)[0], atol=1e-4)
        _, image = task.maps(noisy, steps, measured, (8, 8))
    assert torch.allclose(image.sum(1), torch.ones(2, 8, 8), atol=1e-4)
    assert (image - 0.5).abs().max() > 1e-3


def test_gradients_reach_every_router_from_images_of_two_subjects(task, pairs):
    found = gradients(task, pairs)
    routers = {name: g for name, g in found.items() if "router" in name}
    assert len(routers) == 2 * len(task.blocks)
    assert all(gradient.abs().max() > 0 for gradient in routers.values())


def test_the_constraint_alone_reaches_the_routers(pairs):
    constraint = dataclasses.replace(ROUTED.constraint, text=0.0, image=1.0)
    task = build(dataclasses.replace(ROUTED, constraint=constraint))
    task.zero_grad(set_to_none=True)
    conditions = task.conditions(pairs)
    noisy = torch.zeros(2, 12, 16, 16)
    measured = task.predict(noisy, torch.tensor([500, 500]), conditions)[1]
    measured[:, 1].sum().backward()
    for name, parameter in task.adapter.unet.items():
        if "router" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    task.bridge.close()


def test_an_image_of_one_subject_teaches_routers_nothing(task):
    source = SmallWorldExamples(caption_dropout=0, subject_dropout=0, count=1)
    found = gradients(task, source.batch(0, 2))
    assert not any(g.any() for name, g in found.items() if "router" in name)


def test_one_subject_costs_the_same_loss_as_without_routers():
    batch = SmallWorldExamples(caption_dropout=0, subject_dropout=0, count=1).batch(0, 2)
    plain = build(RUN)
    expected, weights = plain(batch)["loss"], plain.adapter.state_dict()
    plain.bridge.close()
    routed = build(ROUTED)
    lacking = routed.adapter.load_state_dict(weights, strict=False)
    assert len(lacking.missing_keys) == 2 * len(routed.blocks) and not lacking.unexpected_keys
    assert torch.equal(routed(batch)["loss"], expected)
    routed.bridge.close()


def test_a_lower_rank_keeps_what_the_routers_say(task):
    from mmdiff_core.training.shrink import lower_rank
    from mmdiff_core.training.trainable import to_flat

    flat = {key: tensor.detach() for key, tensor in to_flat(task.adapter.state_dict()).items()}
    stem = next(key for key in flat if key.endswith("router.up")).removesuffix(".up")
    same, _ = lower_rank(flat, 4)
    before = flat[f"{stem}.up"] @ flat[f"{stem}.down"]
    assert torch.allclose(same[f"{stem}.up"] @ same[f"{stem}.down"], before, atol=1e-5)
