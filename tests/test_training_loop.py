"""The training loop's promises, on a toy model and a toy source. Run as a script it is one training process."""
from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mmdiff_core.training.example import Example
from mmdiff_core.training.run import process, run_state
from mmdiff_core.training.run.config import LoopConfig
from mmdiff_core.training.run.errors import RunError
from mmdiff_core.training.run.loop import fit
from mmdiff_core.training.run.optimizer import learning_rate_factor, optimizer_for

PACK = Path(__file__).resolve().parent.parent
CONFIG = LoopConfig(
    steps=20, batch=2, learning_rate=0.05, warmup_steps=3, schedule="cosine", final_fraction=0.1, clip_norm=0.5, ema_decay=0.9,
    save_every=5, keep_last=2, log_every=4, workers=0, tracker=None,
)


class Toy(nn.Module):
    """Trained: a small network. Frozen: its output scale. Noise follows from the example's number. `spoil`: {index: loss}."""

    def __init__(self, spoil: dict[int, float] | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.scale = nn.Parameter(torch.tensor([2.0]), requires_grad=False)
        self.spoil = spoil or {}

    def forward(self, batch: tuple[Example, ...]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([e.pixels.flatten() for e in batch]).to(self.scale)
        noise = torch.stack([torch.randn(12, generator=torch.Generator().manual_seed(e.index)) for e in batch]).to(pixels)
        errors = (self.scale * self.second(torch.tanh(self.first(pixels + 0.1 * noise))) - pixels.sum(1, keepdim=True)) ** 2
        spoilt = torch.tensor([self.spoil.get(e.index, 1.0) for e in batch]).mean()
        return {"loss": errors.mean() * spoilt, "size": self.second.weight.norm()}


class Source:
    """Example number i is made from i alone. `seen` notes what was asked; `at` = {start: called when that batch is asked}."""

    def __init__(self, at: dict | None = None, pause: float = 0) -> None:
        self.seen, self.at, self.pause = [], at or {}, pause

    def example(self, index: int) -> Example:
        return Example(torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(index)), "", (), index)

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        self.seen.append(start)
        time.sleep(self.pause)
        self.at.get(start, lambda: None)()
        return tuple(self.example(i) for i in range(start, start + size))


def export(weights, path, header) -> None:
    save_file({k: v.detach().clone() for k, v in weights.items()}, path, metadata=header)


def full_disk(*_) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, config: LoopConfig = CONFIG, source: Source | None = None, model: Toy | None = None, **options):
    """One call of fit -> (report, the newest state's tensors and optimiser, the model)."""
    model = model or Toy()
    report = fit(model, source or Source(), config, folder, **options)
    return report, whole(folder), model


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a folder's newest state by one flat name each."""
    state = run_state.RunStates(folder, 1).newest()
    names = ("weights", "ema") if state.facts["ema_decay"] else ("weights",)
    found = {f"{name}.{k}": v.clone() for name in names for k, v in state.tensors(name).items()}     # not the mapped file
    for number, values in state.optimizer()["optimizer"]["state"].items():
        found |= {f"optimizer.{number}.{k}": v for k, v in values.items()}
    return found | {"step": torch.tensor(state.facts["step"])}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a: dict, b: dict, within: float) -> bool:
    return a.keys() == b.keys() and all((a[k] - b[k]).abs().max() <= within for k in a)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def states(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("state-*"))


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """This file as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(PACK), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen([sys.executable, *launcher, str(Path(__file__)), *arguments], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


# ---------------------------------------------------------------- what a step sees

def test_it_learns(tmp_path):
    report, _, _ = train(tmp_path, replace(CONFIG, steps=60))
    told = lines(tmp_path)
    assert told[-1]["loss"] < told[0]["loss"] / 3
    assert report.steps == 60 and not report.stopped and report.metrics["loss"] < told[0]["loss"]


def test_examples_come_in_order_and_each_once(tmp_path):
    source = Source()
    train(tmp_path, replace(CONFIG, steps=3, batch=4, accumulate=2), source)
    assert source.seen == [0, 4, 8, 12, 16, 20]


def test_two_micro_steps_are_one_batch_of_twice_the_size(tmp_path):
    _, two, _ = train(tmp_path / "a", replace(CONFIG, batch=2, accumulate=2))
    _, one, _ = train(tmp_path / "b", replace(CONFIG, batch=4))
    assert close(two, one, 1e-5)


def test_two_processes_are_one_with_twice_the_batch_also_when_one_is_stopped_between(tmp_path):
    """Two fits in each of two processes: the second process alone gets the signal in the first fit, both stop; both go on."""
    run = start("two", str(tmp_path / "two"), launcher=(
        "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"))
    shown, _ = run.communicate(timeout=120)
    assert run.returncode == 0, shown
    for number, third in ((0, "adapter.safetensors could not be written"), (1, "the main process failed")):
        told = json.loads((tmp_path / f"told-{number}.json").read_text())
        assert told[:2] == ["stopped at 4", "done at 8"] and third in told[2]
        assert "step 2 is not finite" in told[3] and "examples 6..7." in told[3]
    _, one, _ = train(tmp_path / "one", replace(CONFIG, steps=8, batch=4))
    two = whole(tmp_path / "two")
    assert close(two, one, 1e-6)
    assert run_state.RunStates(tmp_path / "two", 1).newest().facts["processes"] == 2
    assert [line["step"] for line in lines(tmp_path / "two")] == [4, 8]


def test_threads_that_prepare_batches_change_nothing(tmp_path):
    _, plain, _ = train(tmp_path / "a")
    source = Source(pause=0.001)
    _, ahead, _ = train(tmp_path / "b", replace(CONFIG, workers=3), source)
    assert same(plain, ahead) and sorted(source.seen) == list(range(0, 40, 2))


def test_an_error_in_the_source_is_the_callers_also_from_a_thread(tmp_path):
    def broken():
        raise FileNotFoundError("picture 12 is gone")

    for workers in (0, 2):
        with pytest.raises(FileNotFoundError, match="picture 12"):
            train(tmp_path / str(workers), replace(CONFIG, workers=workers), Source(at={12: broken}))
    assert not [t for t in threading.enumerate() if "ThreadPool" in t.name]


def test_a_source_that_gives_too_few_is_refused(tmp_path):
    source = Source()
    source.batch = lambda start, size: (source.example(start),)
    with pytest.raises(ValueError, match="gave 1 examples from number 0 on, expected 2"):
        train(tmp_path, source=source)


# ---------------------------------------------------------------- resume

@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_at_fifty_and_resumed_is_a_hundred_bit_for_bit(tmp_path, optimizer):
    """The first half in a process of its own that a SIGTERM ends; ThreadPool, EMA, clipping, warm-up and cosine on."""
    config = replace(CONFIG, steps=100, save_every=40, workers=2, optimizer=optimizer)
    half = start("half", str(tmp_path / "two"), json.dumps(config.to_dict()))
    told, _ = half.communicate(timeout=60)
    assert half.returncode == 0 and "stopped=True" in told and "handlers restored" in told, told
    assert states(tmp_path / "two") == ["state-00000040", "state-00000050"]
    report, resumed, _ = train(tmp_path / "two", config)
    _, once, _ = train(tmp_path / "one", config)
    assert report.steps == 100 and same(resumed, once)
    assert [line["step"] for line in lines(tmp_path / "two")] == sorted({*range(4, 101, 4), 50})


def test_a_killed_process_loses_only_what_came_after_its_last_state(tmp_path):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "two", source=Source(at={26: kill}))        # step 13; states at 5 and 10
    assert [line["step"] for line in lines(tmp_path / "two")] == [4, 8, 12]
    _, resumed, _ = train(tmp_path / "two", replace(CONFIG, log_every=2))
    _, once, _ = train(tmp_path / "one")
    assert same(resumed, once)
    assert [line["step"] for line in lines(tmp_path / "two")] == [4, 8, 12, 14, 16, 18, 20]


def test_resuming_a_finished_run_trains_nothing_and_writes_the_adapter(tmp_path):
    _, before, _ = train(tmp_path)
    report, after, model = train(tmp_path, export=export)
    assert same(before, after) and report.steps == 20 and report.images_per_second == 0
    assert (tmp_path / "adapter.safetensors").is_file()
    assert torch.equal(model.first.weight, after["weights.first.weight"])


def test_only_what_may_change_may_change(tmp_path):
    train(tmp_path, replace(CONFIG, steps=6))
    harmless = replace(CONFIG, steps=7, save_every=3, log_every=1, keep_last=5, sample_every=2, workers=1, tracker="tensorboard")
    report, _, _ = train(tmp_path, harmless)
    assert report.steps == 7
    with pytest.raises(ValueError, match=r"learning_rate was 0.05 and is now 0.01") as error:
        train(tmp_path, replace(CONFIG, learning_rate=0.01, batch=4))
    assert "batch was 2 and is now 4" in str(error.value)


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on_with_their_defaults(tmp_path):
    train(tmp_path, replace(CONFIG, steps=6))
    facts = run_state.RunStates(tmp_path, 1).newest().facts
    older = {name: value for name, value in facts.items() if name not in ("optimizer", "muon_rate")}
    run_state.check_same_run(older, facts, "an older state")
    with pytest.raises(ValueError, match="optimizer was 'adamw' and is now 'muon'"):
        run_state.check_same_run(older, facts | {"optimizer": "muon"}, "an older state")


def test_the_split_of_a_step_may_change_if_the_step_does_not(tmp_path):
    train(tmp_path / "two", replace(CONFIG, batch=4), Source(at={40: ask_to_stop}))
    _, changed, _ = train(tmp_path / "two", replace(CONFIG, batch=2, accumulate=2))
    _, once, _ = train(tmp_path / "one", replace(CONFIG, batch=4))
    assert close(changed, once, 1e-5)


def test_other_parameters_or_groups_are_refused_by_name(tmp_path):
    train(tmp_path, replace(CONFIG, steps=5))
    other = Toy()
    other.third = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="groups was"):
        train(tmp_path, model=other)
    wider = Toy()
    wider.first, wider.second = nn.Linear(12, 9), nn.Linear(9, 1)
    with pytest.raises(ValueError, match=r"another model: first.bias is \(8,\) there and \(9,\) in the model"):
        train(tmp_path, model=wider)


def test_resume_off_refuses_a_folder_with_a_state(tmp_path):
    train(tmp_path, replace(CONFIG, steps=5))
    with pytest.raises(ValueError, match="state-00000005, and resume is off"):
        train(tmp_path, resume=False)
    train(tmp_path / "new", resume=False)


# ---------------------------------------------------------------- stop, damage, disk, numbers

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_leaves_the_handlers_as_they_were(tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    source = Source(at={14: lambda: os.kill(os.getpid(), number)})
    report, state, _ = train(tmp_path, source=source)
    assert report.stopped and report.steps == 8 and state["step"] == 8 and source.seen[-1] == 14
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_third_signal_acts_as_before(tmp_path):
    def three():
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)       # a shell's background job begins with SIGINT ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, source=Source(at={14: three}))
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_it_trains_without_signals(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path)))
    thread.start()
    thread.join()
    assert found[0][0].steps == 20


DISK_ERRORS = (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:672]"),
               SafetensorError("I/O error: No space left on device (os error 28)"))


@pytest.mark.parametrize("error", DISK_ERRORS, ids=lambda e: type(e).__name__)
def test_a_full_disk_leaves_the_last_good_state_and_says_so(tmp_path, monkeypatch, error):
    """The disk fills while the second state's optimiser is written, after its weights."""
    written, real = [], torch.save

    def fills(value, path):
        written.append(path)
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise error
        real(value, path)

    monkeypatch.setattr(run_state.torch, "save", fills)
    with pytest.raises(RunError, match="step 10 could not be written.*GB are free.*state-00000005 is untouched.*Make room"):
        train(tmp_path / "two")
    assert states(tmp_path / "two") == ["state-00000005"]
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    _, resumed, _ = train(tmp_path / "two")
    _, once, _ = train(tmp_path / "one")
    assert same(resumed, once)


def test_a_full_disk_while_the_adapter_is_written_keeps_the_state(tmp_path):
    with pytest.raises(RunError, match="adapter.safetensors could not be written.*The state of step 5 is saved"):
        train(tmp_path, export=full_disk)
    assert states(tmp_path) == ["state-00000005"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit of the weights": lambda state: flip(state / "weights.safetensors"),
    "half of the optimiser": lambda state: (state / "optimizer.pt").write_bytes((state / "optimizer.pt").read_bytes()[:500]),
    "the average is gone": lambda state: (state / "ema.safetensors").unlink(),
    "no facts": lambda state: (state / "state.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_state_is_told_and_the_one_before_it_used(tmp_path, caplog, damage):
    train(tmp_path / "two", source=Source(at={20: ask_to_stop}))         # states at 10 and 11
    damage(tmp_path / "two" / "state-00000011")
    with caplog.at_level(logging.WARNING):
        _, resumed, _ = train(tmp_path / "two", replace(CONFIG, keep_last=1))
    assert "state-00000011 is damaged" in caplog.text and "Going on from state-00000010" in caplog.text
    _, once, _ = train(tmp_path / "one")
    assert same(resumed, once) and states(tmp_path / "two") == ["state-00000020"]


def test_a_damaged_state_makes_room_for_the_same_step_and_never_for_an_older_good_one(tmp_path):
    _, once, _ = train(tmp_path)
    flip(tmp_path / "state-00000020" / "ema.safetensors")
    _, again, _ = train(tmp_path)
    assert same(once, again)
    flip(tmp_path / "state-00000020" / "ema.safetensors")
    train(tmp_path, replace(CONFIG, keep_last=1, save_every=1), Source(at={34: ask_to_stop}))
    assert states(tmp_path) == ["state-00000018"]
    _, again, _ = train(tmp_path)
    assert same(once, again)


def test_if_all_states_are_damaged_it_does_not_start_over(tmp_path):
    train(tmp_path)
    for state in tmp_path.glob("state-*"):
        flip(state / "weights.safetensors")
    with pytest.raises(RunError, match="no state in .* can be used.*Restore one from a copy, or choose a new folder"):
        train(tmp_path)


def test_an_unfinished_state_is_never_read_and_goes_away(tmp_path, caplog):
    (tmp_path / "state-00000009.part").mkdir()
    with caplog.at_level(logging.WARNING):
        train(tmp_path)
    assert "holds no finished state: starting at step 0" in caplog.text
    assert states(tmp_path) == ["state-00000015", "state-00000020"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_what_it_was(tmp_path, value):
    with pytest.raises(RunError, match=rf"step 8 is not finite: loss {value}, size .*, learning_rate 0\..*; examples 30..31\."
                                       r".*kept: state-00000005\. .*lower learning_rate") as error:
        train(tmp_path, replace(CONFIG, accumulate=2), model=Toy({30: value}))
    assert "gradient_norm" in str(error.value) and states(tmp_path) == ["state-00000005"]


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(tmp_path):
    model = Toy()
    source = Source(at={14: lambda: model.first.weight.register_hook(lambda grad: grad * float("nan"))})
    with pytest.raises(RunError, match=r"step 8 is not finite: loss \d.*gradient_norm nan; examples 14..15"):
        train(tmp_path, source=source, model=model)
    assert all(p.isfinite().all() for p in model.parameters())


class Scaled(Accelerator):
    """accelerate with the loss scaler it has on a GPU in fp16, from a scale at which the gradients overflow."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=6)


def half_gradients(model: Toy) -> Toy:
    for parameter in (model.first.weight, model.second.weight):
        parameter.register_hook(lambda grad: grad.half().float())
    return model


def test_an_overflow_of_the_loss_scale_is_no_error_and_the_scale_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "Accelerator", Scaled)
    train(tmp_path / "two", replace(CONFIG, log_every=1), Source(at={20: ask_to_stop}), half_gradients(Toy()))
    _, resumed, _ = train(tmp_path / "two", replace(CONFIG, log_every=1), model=half_gradients(Toy()))
    _, once, _ = train(tmp_path / "one", replace(CONFIG, log_every=1), model=half_gradients(Toy()))
    told = lines(tmp_path / "two")
    assert told[0]["gradient_norm"] is None and told[-1]["gradient_norm"] > 0
    assert same(resumed, once) and once["optimizer.0.step"] < 20          # skipped steps are not counted by AdamW
    scales = [torch.load(tmp_path / n / "state-00000020" / "optimizer.pt")["scaler"] for n in ("one", "two")]
    assert scales[0] == scales[1] and scales[0]["scale"] < 2.0**20


# ---------------------------------------------------------------- what is kept and written

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
    assert torch.equal(load_file(tmp_path / "adapter.safetensors")["first.weight"], state["ema.first.weight"])


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
    assert set(state.tensors("weights")) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert state.facts["step"] == 20 and state.facts["learning_rate"] == 0.05
    assert all(v.dtype == torch.float32 for v in state.tensors("ema").values())


def test_samples_see_the_exported_weights_and_change_nothing(tmp_path):
    seen, model = {}, Toy()

    def sample(step, path):
        seen[step] = model.first.weight.detach().clone()
        assert path.is_dir() and not torch.is_grad_enabled()

    _, sampled, _ = train(tmp_path / "a", replace(CONFIG, sample_every=10), model=model, sample=sample)
    _, plain, _ = train(tmp_path / "b")
    assert sorted(seen) == [10, 20] and torch.equal(seen[20], sampled["ema.first.weight"]) and same(plain, sampled)


def test_parameter_groups_have_their_own_rates(tmp_path):
    def groups(model, rate):
        return [{"params": model.first.parameters(), "lr": 0.0, "weight_decay": 0.0}, {"params": model.second.parameters(), "lr": rate}]

    _, _, model = train(tmp_path, parameter_groups=groups)
    assert torch.equal(model.first.weight, Toy().first.weight) and not torch.equal(model.second.weight, Toy().second.weight)
    with pytest.raises(ValueError, match="leaves out 2 trained parameters, the first is second.weight"):
        train(tmp_path / "less", parameter_groups=lambda model, rate: [{"params": model.first.parameters()}])
    with pytest.raises(ValueError, match="holds 1 parameters that do not require gradients"):
        train(tmp_path / "more", parameter_groups=lambda model, rate: [{"params": model.parameters()}])


def test_muon_moves_every_direction_of_a_matrix_alike_and_leaves_the_rest_to_adamw(tmp_path):
    config = replace(CONFIG, steps=1, batch=64, warmup_steps=0, clip_norm=0, weight_decay=0.0, ema_decay=0)
    begun = Toy()
    moved = {kind: train(tmp_path / kind, replace(config, optimizer=kind, muon_rate=4.0))[2] for kind in ("adamw", "muon")}
    step = (moved["muon"].first.weight - begun.first.weight).detach()
    lengths = torch.linalg.svdvals(step) / (4.0 * CONFIG.learning_rate * 0.2 * 12 ** 0.5)
    assert lengths.min() > 0.5 and lengths.max() < 1.3, lengths      # AdamW's first step goes one way only
    assert torch.equal(moved["muon"].first.bias, moved["adamw"].first.bias)
    assert not torch.equal(moved["muon"].first.weight, moved["adamw"].first.weight)


def test_muon_moves_a_convolutions_kernel_as_the_matrix_that_it_is():
    torch.manual_seed(0)
    kernel, matrix = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(27, 8, bias=False)
    matrix.weight.data.copy_(kernel.weight.data.flatten(1))
    config = replace(CONFIG, optimizer="muon", muon_rate=1.0, weight_decay=0.0)
    optimizers = [optimizer_for(m, dict(m.named_parameters()), config, None) for m in (kernel, matrix)]
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
    groups = lambda model, rate: [{"params": model.first.parameters(), "lr": rate / 10}, {"params": model.second.parameters()}]  # noqa: E731
    train(tmp_path, replace(CONFIG, steps=5, optimizer="muon", muon_rate=2.0), parameter_groups=groups)
    told = run_state.RunStates(tmp_path, 1).newest().facts["groups"]
    assert [(g["parameters"], g["lr"]) for g in told] == [(1, pytest.approx(0.01)), (1, pytest.approx(0.1)), (1, 0.005), (1, 0.05)]


def test_a_torch_without_muon_is_told(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match='"muon" needs torch 2.9 or newer'):
        train(tmp_path, replace(CONFIG, optimizer="muon"))


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
    assert set(told[0]) == {"step", "loss", "size", "learning_rate", "gradient_norm", "images_per_second", "data_seconds",
                            "model_seconds", "optimizer_seconds"}
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert "step 8 of 20: loss" in caplog.text and "images/s" in caplog.text and "left" in caplog.text
    assert report.images_per_second > 0 and report.peak_memory_bytes > 10**7 and "done at step 20" in caplog.text
    assert report.seconds >= report.data_seconds + report.model_seconds + report.optimizer_seconds > 0


def test_a_tracker_that_is_not_installed_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(process, "get_available_trackers", list)
    train(tmp_path, replace(CONFIG, steps=2, tracker="tensorboard"))
    assert "tensorboard is not installed" in caplog.text and lines(tmp_path)


# ---------------------------------------------------------------- the config and the process

@pytest.mark.parametrize("field, value, told", [
    ("steps", 0, "from 1 to"), ("steps", 1e5, "a whole number"), ("batch", True, "a whole number"), ("ema_decay", 1.0, "from 0 to"),
    ("learning_rate", float("nan"), "a number from"), ("schedule", "linear", "one of"), ("mixed_precision", "fp8", "one of"),
    ("betas", (0.9, 1.0), "below 1"), ("seed", -1, "from 0"),
])
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
    with pytest.raises(ValueError, match="first.weight is torch.bfloat16: trained weights must be float32"):
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

    for change, told in ((lambda t: {"loss": t["loss"]}, "must be the same in every call"), (lambda t: {"size": t["size"]}, "one of them 'loss'"),
                         (lambda t: t | {"loss": torch.zeros(2)}, "expected scalars")):
        model = Odd()
        model.change = change
        with pytest.raises(ValueError, match=told):
            train(tmp_path / told[:8], model=model)


def test_what_cannot_be_exact_when_sharded_is_refused():
    for kind in process.SHARDED:
        with pytest.raises(ValueError, match=f"ema_decay is 0.9: .* not supported under {kind.value}"):
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
    assert not {*process.PREPARED} & {*vars(model)} and all(p.grad is None for p in model.parameters())


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
        assert AcceleratorState._shared_state and mine.gradient_accumulation_steps == 3 and mine.num_processes == 1
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        process.GradientState._reset_state()


# ---------------------------------------------------------------- as a process of its own

def half(folder: Path, config: LoopConfig) -> None:
    """Trains until it gets a SIGTERM in its fiftieth step."""
    before = signal.getsignal(signal.SIGTERM)
    config = replace(config, workers=0)         # so that the batch is asked for in the step itself
    report = fit(Toy(), Source(at={98: ask_to_stop}), config, folder)
    print(report, f"stopped={report.stopped}", "handlers restored" if signal.getsignal(signal.SIGTERM) == before else "")


def two(folder: Path) -> None:
    """One of two processes: the second gets a SIGTERM in the fourth step of the first fit, the first one's disk is full in the
    third, and the second one's example 6 is bad in the fourth."""
    accelerator = Accelerator(cpu=True)
    number, config, told = accelerator.process_index, replace(CONFIG, steps=8), []
    for source in (Source(at={14: ask_to_stop} if number else {}), Source()):
        report = fit(Toy(), source, config, folder)
        told.append(f"{'stopped' if report.stopped else 'done'} at {report.steps}")
    assert source.seen == [s * 4 + number * 2 for s in range(4, 8)], source.seen
    for place, options in ((folder, {"export": full_disk}), (folder / "new", {"model": Toy({6: float("nan")})})):
        try:
            fit(**{"model": Toy(), "source": Source(), "config": config, "folder": place} | options)
        except RunError as error:
            told.append(str(error))
    (folder.parent / f"told-{number}.json").write_text(json.dumps(told))
    accelerator.end_training()


if __name__ == "__main__":
    if sys.argv[1] == "half":
        half(Path(sys.argv[2]), LoopConfig.from_dict(json.loads(sys.argv[3])))
    else:
        two(Path(sys.argv[2]))
