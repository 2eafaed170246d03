"""The loop's config, what it refuses, and the process that it leaves as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from mmdiff_core.training.run import process
from mmdiff_core.training.run.config import LoopConfig

from support.toy_run import CONFIG, Toy, train

pytestmark = pytest.mark.usefixtures("without_gpu")


@pytest.mark.parametrize(
    "field, value, told",
    [
        ("steps", 0, "from 1 to"),
        ("steps", 1e5, "a whole number"),
        ("batch", True, "a whole number"),
        ("ema_decay", 1.0, "from 0 to"),
        ("learning_rate", float("nan"), "a number from"),
        ("schedule", "linear", "one of"),
        ("mixed_precision", "fp8", "one of"),
        ("betas", (0.9, 1.0), "below 1"),
        ("seed", -1, "from 0"),
    ],
)
def test_a_field_out_of_range_is_named(field, value, told):
    with pytest.raises(ValueError, match=f"^{field} is .*{told}"):
        replace(CONFIG, **{field: value})


def test_the_config_goes_through_json_and_names_fields_it_does_not_know():
    assert LoopConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    with pytest.raises(ValueError, match=r"unknown fields \['epochs'\]"):
        LoopConfig.from_dict({"steps": 1, "batch": 1, "epochs": 3})
    with pytest.raises(ValueError, match=r"lacks the fields \['batch'\]"):
        LoopConfig.from_dict({"steps": 1})


def test_what_cannot_be_trained_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nothing to train"):
        train(tmp_path, model=Toy().requires_grad_(False))
    with pytest.raises(
        ValueError, match="first.weight is torch.bfloat16: trained weights must be float32"
    ):
        train(tmp_path, model=Toy().bfloat16())
    with torch.inference_mode():
        made = Toy()
    with pytest.raises(ValueError, match="first.weight was made in torch.inference_mode"):
        train(tmp_path, model=made)
    with pytest.raises(ValueError, match='"fp16", which needs a GPU'):
        train(tmp_path, replace(CONFIG, mixed_precision="fp16"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    with pytest.raises(ValueError, match="launched as 2 processes, but accelerate sees 1"):
        train(tmp_path)


def test_a_model_must_give_the_same_scalars_every_time(tmp_path):
    class Odd(Toy):
        def forward(self, batch):
            out = super().forward(batch)
            return self.change(out) if batch[0].index >= 6 else out

    for change, told in (
        (lambda t: {"loss": t["loss"]}, "must be the same in every call"),
        (lambda t: {"size": t["size"]}, "one of them 'loss'"),
        (lambda t: t | {"loss": torch.zeros(2)}, "expected scalars"),
    ):
        model = Odd()
        model.change = change
        with pytest.raises(ValueError, match=told):
            train(tmp_path / told[:8], model=model)


def test_what_cannot_be_exact_when_sharded_is_refused():
    for kind in process.SHARDED:
        with pytest.raises(
            ValueError, match=f"ema_decay is 0.9: .* not supported under {kind.value}"
        ):
            process._check_sharded(CONFIG, kind)
        with pytest.raises(ValueError, match="sample_every is 5"):
            process._check_sharded(replace(CONFIG, ema_decay=0, sample_every=5), kind)
        with pytest.raises(ValueError, match='optimizer is "muon", which needs whole matrices'):
            process._check_sharded(replace(CONFIG, ema_decay=0, optimizer="muon"), kind)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_process_is_left_as_it_was_also_from_inference_mode(tmp_path, precision):
    model = Toy().eval()
    with torch.inference_mode():
        report, _, _ = train(tmp_path, replace(CONFIG, mixed_precision=precision), model=model)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert report.steps == 20 and not model.training
    assert not PartialState._shared_state and not AcceleratorState._shared_state
    assert not {*process.PREPARED} & {*vars(model)} and all(
        p.grad is None for p in model.parameters()
    )


def test_bf16_is_used_in_every_fit_of_the_same_model(tmp_path):
    seen = []

    class Watched(Toy):
        def forward(self, batch):
            seen.append(self.first(torch.zeros(1, 12)).dtype)
            return super().forward(batch)

    model = Watched()
    for name in "ab":
        train(tmp_path / name, replace(CONFIG, steps=1, mixed_precision="bf16"), model=model)
    train(tmp_path / "c", replace(CONFIG, steps=1), model=model)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_an_accelerator_that_was_there_stays(tmp_path):
    mine = Accelerator(cpu=True, gradient_accumulation_steps=3)
    try:
        train(tmp_path, replace(CONFIG, accumulate=2))
        assert (
            AcceleratorState._shared_state
            and mine.gradient_accumulation_steps == 3
            and mine.num_processes == 1
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        process.GradientState._reset_state()
