"""What a training step sees."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from mmdiff_core.training.run import run_state

from support.toy_process import start
from support.toy_run import CONFIG, Source, close, lines, same, train, whole

pytestmark = pytest.mark.usefixtures("without_gpu")


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
    """Two fits in each of two processes.

    The second process alone gets the signal in the first fit, both stop; both go on.
    """
    run = start(
        "two",
        str(tmp_path / "two"),
        launcher=(
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "localhost:0",
        ),
    )
    shown, _ = run.communicate(timeout=300)
    assert run.returncode == 0, shown
    for number, third in (
        (0, "adapter.safetensors could not be written"),
        (1, "the main process failed"),
    ):
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
            train(
                tmp_path / str(workers), replace(CONFIG, workers=workers), Source(at={12: broken})
            )
    assert not [t for t in threading.enumerate() if "ThreadPool" in t.name]


def test_a_source_that_gives_too_few_is_refused(tmp_path):
    source = Source()
    source.batch = lambda start, size: (source.example(start),)
    with pytest.raises(ValueError, match="gave 1 examples from number 0 on, expected 2"):
        train(tmp_path, source=source)
