"""Signals, full disks, damaged states, and numbers that are not finite."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from mmdiff_core.training.run import process, run_state
from mmdiff_core.training.run.errors import RunError

from support.toy_run import CONFIG, Source, Toy, ask_to_stop, full_disk, lines, same, states, train

pytestmark = pytest.mark.usefixtures("without_gpu")


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

    # a shell's background job begins with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
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


DISK_ERRORS = (
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("[enforce fail at inline_container.cc:672]"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
)


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
    with pytest.raises(
        RunError,
        match="step 10 could not be written.*GB are free.*state-00000005 is untouched.*Make room",
    ):
        train(tmp_path / "two")
    assert states(tmp_path / "two") == ["state-00000005"]
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    _, resumed, _ = train(tmp_path / "two")
    _, once, _ = train(tmp_path / "one")
    assert same(resumed, once)


def test_a_full_disk_while_the_adapter_is_written_keeps_the_state(tmp_path):
    with pytest.raises(
        RunError, match="adapter.safetensors could not be written.*The state of step 5 is saved"
    ):
        train(tmp_path, export=full_disk)
    assert states(tmp_path) == ["state-00000005"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit of the weights": lambda state: flip(state / "weights.safetensors"),
    "half of the optimiser": lambda state: (state / "optimizer.pt").write_bytes(
        (state / "optimizer.pt").read_bytes()[:500]
    ),
    "the average is gone": lambda state: (state / "ema.safetensors").unlink(),
    "no facts": lambda state: (state / "state.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_state_is_told_and_the_one_before_it_used(tmp_path, caplog, damage):
    train(tmp_path / "two", source=Source(at={20: ask_to_stop}))  # states at 10 and 11
    damage(tmp_path / "two" / "state-00000011")
    with caplog.at_level(logging.WARNING):
        _, resumed, _ = train(tmp_path / "two", replace(CONFIG, keep_last=1))
    assert (
        "state-00000011 is damaged" in caplog.text and "Going on from state-00000010" in caplog.text
    )
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
    with pytest.raises(
        RunError,
        match="no state in .* can be used.*Restore one from a copy, or choose a new folder",
    ):
        train(tmp_path)


def test_an_unfinished_state_is_never_read_and_goes_away(tmp_path, caplog):
    (tmp_path / "state-00000009.part").mkdir()
    with caplog.at_level(logging.WARNING):
        train(tmp_path)
    assert "holds no finished state: starting at step 0" in caplog.text
    assert states(tmp_path) == ["state-00000015", "state-00000020"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_what_it_was(tmp_path, value):
    with pytest.raises(
        RunError,
        match=rf"step 8 is not finite: loss {value}, size .*, "
        r"learning_rate 0\..*; examples 30..31\."
        r".*kept: state-00000005\. .*lower learning_rate",
    ) as error:
        train(tmp_path, replace(CONFIG, accumulate=2), model=Toy({30: value}))
    assert "gradient_norm" in str(error.value) and states(tmp_path) == ["state-00000005"]


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(tmp_path):
    model = Toy()
    source = Source(
        at={14: lambda: model.first.weight.register_hook(lambda grad: grad * float("nan"))}
    )
    with pytest.raises(
        RunError, match=r"step 8 is not finite: loss \d.*gradient_norm nan; examples 14..15"
    ):
        train(tmp_path, source=source, model=model)
    assert all(p.isfinite().all() for p in model.parameters())


class Scaled(Accelerator):
    """accelerate with the loss scaler it has on a GPU in fp16, from a scale at which the gradients
    overflow.
    """

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=6)


def half_gradients(model: Toy) -> Toy:
    for parameter in (model.first.weight, model.second.weight):
        parameter.register_hook(lambda grad: grad.half().float())
    return model


def test_an_overflow_of_the_loss_scale_is_no_error_and_the_scale_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "Accelerator", Scaled)
    train(
        tmp_path / "two",
        replace(CONFIG, log_every=1),
        Source(at={20: ask_to_stop}),
        half_gradients(Toy()),
    )
    _, resumed, _ = train(
        tmp_path / "two", replace(CONFIG, log_every=1), model=half_gradients(Toy())
    )
    _, once, _ = train(tmp_path / "one", replace(CONFIG, log_every=1), model=half_gradients(Toy()))
    told = lines(tmp_path / "two")
    assert told[0]["gradient_norm"] is None and told[-1]["gradient_norm"] > 0
    # skipped steps are not counted by AdamW
    assert same(resumed, once) and once["optimizer.0.step"] < 20
    scales = [
        torch.load(tmp_path / n / "state-00000020" / "optimizer.pt")["scaler"]
        for n in ("one", "two")
    ]
    assert scales[0] == scales[1] and scales[0]["scale"] < 2.0**20
