"""A run goes on where it stopped, and what may have changed by then."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmdiff_core.training.run import run_state

from support.toy_process import start
from support.toy_run import (
    CONFIG,
    Source,
    Toy,
    ask_to_stop,
    close,
    export,
    lines,
    same,
    states,
    train,
)

pytestmark = pytest.mark.usefixtures("without_gpu")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_at_fifty_and_resumed_is_a_hundred_bit_for_bit(tmp_path, optimizer):
    """The first half in a process of its own that a SIGTERM ends.

    ThreadPool, EMA, clipping, warm-up and cosine on.
    """
    config = replace(CONFIG, steps=100, save_every=40, workers=2, optimizer=optimizer)
    half = start("half", str(tmp_path / "two"), json.dumps(config.to_dict()))
    told, _ = half.communicate(timeout=300)
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
        train(tmp_path / "two", source=Source(at={26: kill}))  # step 13; states at 5 and 10
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
    harmless = replace(
        CONFIG,
        steps=7,
        save_every=3,
        log_every=1,
        keep_last=5,
        sample_every=2,
        workers=1,
        tracker="tensorboard",
    )
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
    with pytest.raises(
        ValueError, match=r"another model: first.bias is \(8,\) there and \(9,\) in the model"
    ):
        train(tmp_path, model=wider)


def test_resume_off_refuses_a_folder_with_a_state(tmp_path):
    train(tmp_path, replace(CONFIG, steps=5))
    with pytest.raises(ValueError, match="state-00000005, and resume is off"):
        train(tmp_path, resume=False)
    train(tmp_path / "new", resume=False)
