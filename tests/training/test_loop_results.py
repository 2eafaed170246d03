"""What the loop keeps and writes: averages, states, samples, rates, metrics."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmdiff_core.training.run import process, run_state
from mmdiff_core.training.run.optimizer import (
    Muon,
    learning_rate_factor,
    optimizer_for,
    orthogonalised,
)

from support.toy_run import CONFIG, Toy, export, lines, same, states, train

pytestmark = pytest.mark.usefixtures("without_gpu")


def test_the_average_is_what_its_formula_says_and_is_exported(tmp_path):
    seen = []

    class Watched(Toy):
        def forward(self, batch):
            seen.append(self.first.weight.detach().clone())
            return super().forward(batch)

    _, state, model = train(tmp_path, model=Watched(), export=export)
    average, after = seen[0], [*seen[1:], model.first.weight.detach()]
    for number, weight in enumerate(after, start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(state["ema.first.weight"], average, atol=1e-6)
    assert torch.equal(
        load_file(tmp_path / "adapter.safetensors")["first.weight"], state["ema.first.weight"]
    )


def test_without_an_average_the_last_weights_are_exported(tmp_path):
    _, state, model = train(tmp_path, replace(CONFIG, ema_decay=0), export=export)
    exported = load_file(tmp_path / "adapter.safetensors")
    assert set(exported) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert all(torch.equal(exported[k], model.state_dict()[k]) for k in exported)
    assert not (tmp_path / "state-00000020" / "ema.safetensors").exists()


def test_only_trained_parameters_are_saved_and_old_states_are_dropped(tmp_path):
    train(tmp_path, replace(CONFIG, keep_last=3))
    assert states(tmp_path) == ["state-00000010", "state-00000015", "state-00000020"]
    state = run_state.RunStates(tmp_path, 3).newest()
    assert set(state.tensors("weights")) == {
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
    }
    assert state.facts["step"] == 20 and state.facts["learning_rate"] == 0.05
    assert all(v.dtype == torch.float32 for v in state.tensors("ema").values())


def test_samples_see_the_exported_weights_and_change_nothing(tmp_path):
    seen, model = {}, Toy()

    def sample(step, path):
        seen[step] = model.first.weight.detach().clone()
        assert path.is_dir() and not torch.is_grad_enabled()

    _, sampled, _ = train(
        tmp_path / "a", replace(CONFIG, sample_every=10), model=model, sample=sample
    )
    _, plain, _ = train(tmp_path / "b")
    assert (
        sorted(seen) == [10, 20]
        and torch.equal(seen[20], sampled["ema.first.weight"])
        and same(plain, sampled)
    )


def test_parameter_groups_have_their_own_rates(tmp_path):
    def groups(model, rate):
        return [
            {"params": model.first.parameters(), "lr": 0.0, "weight_decay": 0.0},
            {"params": model.second.parameters(), "lr": rate},
        ]

    _, _, model = train(tmp_path, parameter_groups=groups)
    assert torch.equal(model.first.weight, Toy().first.weight) and not torch.equal(
        model.second.weight, Toy().second.weight
    )
    with pytest.raises(
        ValueError, match="leaves out 2 trained parameters, the first is second.weight"
    ):
        train(
            tmp_path / "less",
            parameter_groups=lambda model, rate: [{"params": model.first.parameters()}],
        )
    with pytest.raises(ValueError, match="holds 1 parameters that do not require gradients"):
        train(
            tmp_path / "more", parameter_groups=lambda model, rate: [{"params": model.parameters()}]
        )


def test_muon_moves_every_direction_of_a_matrix_alike_and_leaves_the_rest_to_adamw(tmp_path):
    config = replace(
        CONFIG, steps=1, batch=64, warmup_steps=0, clip_norm=0, weight_decay=0.0, ema_decay=0
    )
    begun = Toy()
    moved = {
        kind: train(tmp_path / kind, replace(config, optimizer=kind, muon_rate=4.0))[2]
        for kind in ("adamw", "muon")
    }
    step = (moved["muon"].first.weight - begun.first.weight).detach()
    lengths = torch.linalg.svdvals(step) / (4.0 * CONFIG.learning_rate * 0.2 * 12**0.5)
    # AdamW's first step goes one way only
    assert lengths.min() > 0.5 and lengths.max() < 1.3, lengths
    assert torch.equal(moved["muon"].first.bias, moved["adamw"].first.bias)
    assert not torch.equal(moved["muon"].first.weight, moved["adamw"].first.weight)


def test_muon_moves_a_convolutions_kernel_as_the_matrix_that_it_is():
    torch.manual_seed(0)
    kernel, matrix = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(27, 8, bias=False)
    matrix.weight.data.copy_(kernel.weight.data.flatten(1))
    config = replace(CONFIG, optimizer="muon", muon_rate=1.0, weight_decay=0.0)
    optimizers = [
        optimizer_for(m, dict(m.named_parameters()), config, None) for m in (kernel, matrix)
    ]
    for step in range(3):
        gradient = torch.randn(8, 27, generator=torch.Generator().manual_seed(step))
        for module, optimizer in zip((kernel, matrix), optimizers):
            optimizer.zero_grad()
            assert module.weight.grad is None
            module.weight.grad = gradient.reshape(module.weight.shape).clone()
            optimizer.step()
    assert torch.equal(kernel.weight.flatten(1), matrix.weight)
    again = optimizer_for(kernel, dict(kernel.named_parameters()), config, None)
    again.load_state_dict(optimizers[0].state_dict())
    assert len(again.state) == 1


def test_groups_keep_their_own_rates_under_muon(tmp_path):
    def groups(model, rate):
        first = {"params": model.first.parameters(), "lr": rate / 10}
        return [first, {"params": model.second.parameters()}]

    train(
        tmp_path, replace(CONFIG, steps=5, optimizer="muon", muon_rate=2.0), parameter_groups=groups
    )
    told = run_state.RunStates(tmp_path, 1).newest().facts["groups"]
    assert [(g["parameters"], g["lr"]) for g in told] == [
        (1, pytest.approx(0.01)),
        (1, pytest.approx(0.1)),
        (1, 0.005),
        (1, 0.05),
    ]


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (8, 8)])
def test_muon_is_torchs_own_but_for_the_half_precision_that_torch_computes_in(shape):
    if not hasattr(torch.optim, "Muon"):
        pytest.fail("the oracle, torch.optim.Muon, needs torch 2.9 or newer")
    ours = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    theirs = nn.Parameter(ours.detach().clone())
    groups = [{"params": [ours], "lr": 0.01, "weight_decay": 0.1}]
    muon = Muon(groups, momentum=0.95)
    oracle = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(5):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step + 1))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        oracle.step()
    assert (ours - theirs).abs().max() < 1e-3       # a step moves an element by about 1e-2


def test_the_singular_values_of_an_orthogonalised_matrix_are_near_one():
    for shape in ((12, 576), (128, 40), (16, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
        lengths = torch.linalg.svdvals(orthogonalised(matrix))
        assert lengths.min() > 0.3 and lengths.max() < 1.3
    assert torch.isfinite(orthogonalised(torch.zeros(3, 4))).all()


def test_matrices_that_are_orthogonalised_at_once_are_as_each_alone():
    matrices = torch.randn(3, 8, 5)
    for each, alone in zip(orthogonalised(matrices), matrices, strict=True):
        assert torch.allclose(each, orthogonalised(alone), atol=1e-5)


def test_the_rate_rises_and_falls_as_configured():
    rates = [learning_rate_factor(step, CONFIG) for step in range(20)]
    assert rates[:3] == [1 / 3, 2 / 3, 1.0] and rates[3] == 1.0 and 0.1 < rates[-1] < 0.12
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert learning_rate_factor(19, replace(CONFIG, schedule="constant")) == 1.0


def test_metrics_are_written_logged_and_reported(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        report, _, _ = train(tmp_path, replace(CONFIG, tracker="tensorboard"))
    told = lines(tmp_path)
    assert [line["step"] for line in told] == [4, 8, 12, 16, 20]
    assert set(told[0]) == {
        "step",
        "loss",
        "size",
        "learning_rate",
        "gradient_norm",
        "images_per_second",
        "data_seconds",
        "model_seconds",
        "optimizer_seconds",
    }
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert (
        "step 8 of 20: loss" in caplog.text and "images/s" in caplog.text and "left" in caplog.text
    )
    assert (
        report.images_per_second > 0
        and report.peak_memory_bytes > 10**7
        and "done at step 20" in caplog.text
    )
    assert (
        report.seconds >= report.data_seconds + report.model_seconds + report.optimizer_seconds > 0
    )


def test_a_tracker_that_is_not_installed_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(process, "get_available_trackers", list)
    train(tmp_path, replace(CONFIG, steps=2, tracker="tensorboard"))
    assert "tensorboard is not installed" in caplog.text and lines(tmp_path)
