"""A short training of the real thing.

The command's own path, from a config file to an adapter that samples through the nodes.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from mmdiff_core.small_world.examples import SmallWorldExamples
from mmdiff_core.training.config import AdapterConfig, RunConfig
from mmdiff_core.training.run.config import LoopConfig

from support.paths import PACK

RUNS = sorted((PACK / "mmdiff_core/lab/runs").glob("*.json"))
STEPS, WEIGHT = 60, 0.5
LOOP = {
    "steps": STEPS,
    "batch": 4,
    "learning_rate": 0.003,
    "betas": (0.9, 0.99),
    "warmup_steps": 5,
    "ema_decay": 0.9,
    "save_every": 1000,
    "log_every": 20,
    "workers": 0,
    "tracker": None,
}


def short_run(weight: float) -> RunConfig:
    return RunConfig.from_dict(
        {
            "base": "small-world",
            "adapter": {"name": "small-world", "rank": 8, "text_rank": 4},
            "data": {"kind": "small-world", "count": 2},
            "constraint": {"text": weight, "image": weight},
            "loop": LOOP,
        }
    )


def numbers(measures: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in measures.items()}


@pytest.fixture(scope="module")
def judged():
    """The same held-out examples for every measurement."""
    return SmallWorldExamples(
        seed=50, split="test", caption_dropout=0, subject_dropout=0, count=2
    ).batch(0, 24)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, judged):
    """{constraint's weight: (measures before, measures after, folder)} of two short runs that
    differ in nothing else.
    """
    from mmdiff_core.host.frozen_base.build import build_task
    from mmdiff_core.host.frozen_base.run import export_with, load_data
    from mmdiff_core.training.run.loop import fit

    found = {}
    for weight in (0.0, WEIGHT):
        run, folder = short_run(weight), tmp_path_factory.mktemp("run")
        task = build_task(run)
        with torch.no_grad():
            before = task(judged)
        fit(
            task,
            load_data(run.data, run.seed),
            LoopConfig.from_dict(run.loop),
            folder,
            export=export_with(run, task, "a test"),
        )
        with torch.no_grad():
            after = task(judged)
        task.bridge.close()
        found[weight] = (numbers(before), numbers(after), folder)
    return found


def test_the_denoising_loss_on_individuals_it_never_saw_falls(trained):
    before, after, _ = trained[0.0]
    assert after["denoising"] < 0.95 * before["denoising"]


def test_the_constraint_raises_the_probability_inside_the_own_mask(trained):
    (_, without, _), (_, constrained, _) = trained[0.0], trained[WEIGHT]
    # the base finds nouns by itself, the subjects' own maps do not (0.57 against 0.78)
    assert constrained["image_inside"] > without["image_inside"] + 0.1
    assert constrained["image_constraint"] < without["image_constraint"] - 0.1
    assert constrained["text_inside"] > without["text_inside"] + 0.01
    assert constrained["text_constraint"] < without["text_constraint"] - 0.1


def test_the_result_loads_and_samples_through_the_nodes(trained):
    import comfy.sample

    from mmdiff_core.host import small_world
    from mmdiff_core.host.apply import Strength, apply
    from mmdiff_core.host.encode import encode_subject
    from mmdiff_core.host.models import load_mmdiff
    from mmdiff_core.host.prompt import encode_prompt
    from mmdiff_core.method.subjects import PromptSubject

    mmdiff = load_mmdiff(trained[WEIGHT][2] / "adapter.safetensors")
    model, clip, clip_vision, vae = small_world.load()
    refs = small_world.draw_references("ghost", 0.7, 0.2, "stripes", "white", "crown", 2)
    subject = PromptSubject(encode_subject(mmdiff, clip_vision, refs, None, "ghost").subject)
    prompt = encode_prompt(clip, mmdiff, "a ghost<|subj|> at night", "", (subject,))
    noise = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures = []
    plain = encode_prompt(clip, mmdiff, "a ghost at night", "")
    patched = apply(model, mmdiff.adapter, Strength(fuse_scale=1.0))
    for used, asked in ((model, plain), (patched, prompt)):
        latents = comfy.sample.sample(
            used,
            noise,
            2,
            3.0,
            "euler",
            "normal",
            asked.positive,
            asked.negative,
            torch.zeros_like(noise),
            seed=0,
        )
        pictures.append(vae.decode(latents))
    assert pictures[1].shape == (1, 128, 128, 3) and (pictures[0] - pictures[1]).abs().max() > 0.02


def test_the_adapters_header_says_what_made_it(trained):
    from safetensors import safe_open

    with safe_open(str(trained[WEIGHT][2] / "adapter.safetensors"), framework="pt") as file:
        header = file.metadata()
    assert RunConfig.from_json(header["run"]).constraint.text == WEIGHT
    assert (
        header["training_step"] == str(STEPS)
        and header["made_by"] == "a test"
        and "threads" in header["hardware"]
    )


def test_a_run_can_begin_from_an_adapter_and_its_header_keeps_where_that_came_from(
    trained, tmp_path
):
    from safetensors import safe_open
    from safetensors.torch import load_file

    from mmdiff_core.commands import main

    begun = trained[WEIGHT][2] / "adapter.safetensors"
    still = {**LOOP, "steps": 1, "batch": 2, "learning_rate": 1e-12, "weight_decay": 0.0}
    (tmp_path / "run.json").write_text(
        json.dumps(json.loads(short_run(WEIGHT).to_json()) | {"loop": still})
    )
    assert (
        main(
            [
                "train",
                str(tmp_path / "run.json"),
                str(tmp_path / "out"),
                "--init",
                str(begun),
                "--cpu",
            ]
        )
        == 0
    )
    before, after = load_file(begun), load_file(tmp_path / "out/adapter.safetensors")
    assert before.keys() == after.keys() and all(
        torch.allclose(before[k], after[k], atol=1e-6) for k in before
    )
    with safe_open(str(tmp_path / "out/adapter.safetensors"), framework="pt") as file:
        header = file.metadata()
    assert (
        json.loads(header["begun_from"])["made_by"] == "a test"
        and "--init adapter.safetensors" in header["made_by"]
    )


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_run_is_a_valid_config(path):
    run = RunConfig.from_json(path.read_text(encoding="utf-8"))
    LoopConfig.from_dict({"seed": run.seed, **run.loop})
    assert json.loads(run.to_json())["adapter"]["name"] == "small-world"


def test_a_misspelt_field_is_named_with_its_section():
    with pytest.raises(ValueError, match=r"section 'constraint' has unknown fields \['txet'\]"):
        RunConfig.from_dict({"constraint": {"txet": 1}})


def test_a_base_that_is_not_there_is_named():
    from mmdiff_core.host.frozen_base.base import load_base

    with pytest.raises(FileNotFoundError, match="base.checkpoint"):
        load_base({"checkpoint": "nowhere.safetensors", "image_encoder": "nor.safetensors"})
    with pytest.raises(ValueError, match="small-world"):
        load_base("sdxl")


def test_an_adapter_without_a_part_has_no_weights_of_it(tmp_path):
    from mmdiff_core.host.frozen_base.build import build_task

    plain = build_task(
        RunConfig(
            base="small-world",
            adapter=AdapterConfig(
                name="small-world", rank=4, text_rank=0, vision=(), refiner_depth=0
            ),
        )
    )
    names = [name for name, _ in plain.adapter.named_parameters()]
    assert not any(
        name.startswith(("text.", "vision.")) or "refiner.blocks" in name for name in names
    )
    assert dataclasses.replace(plain.adapter.config, refiner_depth=2).name == "small-world"
