"""Configs, states and folders of runs that are not as a run needs them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff_core.training.config import RunConfig
from mmdiff_core.training.data.config import DataConfig, FileData
from mmdiff_core.training.lock import Lock, LockedError
from mmdiff_core.training.run import progress
from mmdiff_core.training.run.config import LoopConfig
from mmdiff_core.training.run.errors import RunError
from mmdiff_core.training.run.run_state import LOCK_FILE, RunStates, read_state, signed

from support import small_files
from support.mutations import (
    NASTY,
    Tally,
    dumps,
    judge,
    mutated_bytes,
    mutated_json,
    sentence,
)
from support.toy_run import CONFIG, Source, train

# ---------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "values, told",
    [
        ({"adapter": {"vision": "visual_projection"}}, "adapter.vision 'visual_projection'.*list"),
        ({"adapter": {"rank": "64"}}, "adapter.rank '64', expected a whole number"),
        ({"adapter": {"rank": 0}}, "adapter.rank 0"),
        ({"adapter": {"name": "evil"}}, "adapter.name is 'evil', expected one of"),
        ({"adapter": {"refiner_depth": 2**31}}, "adapter.refiner_depth 2147483648"),
        ({"objective": {"checkpointing": "no"}}, "objective.checkpointing 'no', .* true or false"),
        ({"objective": {"checkpointing": 0}}, "objective.checkpointing 0"),
        ({"constraint": {"text": None}}, "constraint.text None, expected a number"),
        ({"constraint": {"txet": 1}}, "section 'constraint' has unknown fields .'txet'."),
        ({"base": 3}, "base is 3"),
        ({"seed": 1.5}, "seed 1.5"),
        ([], "expected an object"),
    ],
)
def test_a_field_of_another_type_is_named_with_its_section(values, told):
    with pytest.raises(ValueError, match=told):
        RunConfig.from_dict(values)
    with pytest.raises(ValueError, match=told):
        RunConfig.from_json(json.dumps(values))


FILES = {"records": ["a.jsonl"], "side": 64, "references": [1, 2], "background": [0, 0, 1]}
FILES |= {"augmentation": {"scale": [1, 1], "flip": 0.5}, "dropout": {"caption": 0.2}}
FILES |= {"faces": {"root": "models"}, "seed": 3}


@pytest.mark.parametrize(
    "read, values",
    [
        (RunConfig.from_dict, json.loads(RunConfig().to_json())),
        (LoopConfig.from_dict, CONFIG.to_dict()),
        (FileData.from_dict, FILES),
    ],
    ids=["run", "loop", "data"],
)
def test_whatever_stands_in_a_config_is_taken_whole_or_told(read, values, mutations):
    tally = Tally("config")
    assert read(values)
    for number in range(3 * mutations):
        changed = mutated_json(values, random.Random(number))

        def again(found) -> bool:
            return found == read(changed)  # noqa: B023

        judge(tally, number, lambda: read(changed), again, (ValueError,))  # noqa: B023
    assert tally.failures == 0, tally.worst


@pytest.mark.parametrize("value", NASTY, ids=lambda value: ascii(value)[:20])
def test_no_field_of_the_data_is_taken_for_another_type(value):
    for name, right in {"side": int, "visible": (int, float), "references": list}.items():
        if not isinstance(value, right) or isinstance(value, bool):
            with pytest.raises(ValueError, match=name) as error:
                DataConfig.from_dict({name: value})
            assert sentence(str(error.value))


# ---------------------------------------------------------------- two at once


@pytest.mark.usefixtures("without_gpu")
def test_a_second_training_in_the_same_folder_is_refused_and_the_first_goes_on(tmp_path):
    refused = []

    def second():
        with pytest.raises(LockedError, match="in use by another process .*mix their results") as e:
            train(tmp_path)
        refused.append(str(e.value))

    report, _, _ = train(tmp_path, source=Source(at={6: second}))
    assert report.steps == 20 and len(refused) == 1 and str(tmp_path) in refused[0]
    assert train(tmp_path)[0].steps == 20  # it is free again


@pytest.mark.usefixtures("without_gpu")
def test_a_training_that_failed_leaves_its_folder_free(tmp_path):
    def fail():
        raise OSError("no such picture")

    for _ in range(2):
        with pytest.raises(OSError, match="no such picture"):
            train(tmp_path, source=Source(at={0: fail}))


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from mmdiff_core.training.lock import Lock\n"
        "lock = Lock(Path(sys.argv[2]), 'x')\n"
        "lock.acquire()\n"
        "print('taken', flush=True)\n"
        "sys.stdin.read()\n"
    )
    pack = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(pack), str(tmp_path / LOCK_FILE)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "taken\n"
    with Lock(tmp_path / LOCK_FILE, "the folder") as lock:
        with pytest.raises(LockedError, match=rf"another process \({other.pid}\)"):
            lock.acquire()
        other.kill()
        other.communicate()
        lock.acquire()


# ---------------------------------------------------------------- metrics


def test_damaged_lines_of_metrics_are_left_out_and_stop_nothing(tmp_path, mutations):
    path = tmp_path / "metrics.jsonl"
    lines = [dumps({"step": step, "loss": 0.5 / step}) for step in range(1, 9)]
    whole = "".join(f"{line}\n" for line in lines).encode()
    for number in range(3 * mutations):
        path.write_bytes(mutated_bytes(whole, random.Random(number)))
        progress._keep_until(path, 5)
        kept = path.read_text().splitlines()
        assert all(json.loads(line)["step"] <= 5 for line in kept)
    for odd in ('{"step": "5"}', '{"step": null}', "[" * 100_000, '{"step": [1]}', "5"):
        path.write_text(f"{odd}\n{lines[0]}\n")
        progress._keep_until(path, 5)
        assert path.read_text() == f"{lines[0]}\n"


# ---------------------------------------------------------------- states


def test_every_fact_of_a_state_is_inside_its_checksum(tmp_path):
    small_files.write_state(tmp_path)
    path = tmp_path / "state-00000005" / "state.json"
    facts = json.loads(path.read_text())
    for name in facts:
        for value in ([], 7.5, "x"):
            path.write_text(json.dumps(facts | {name: value}))
            with pytest.raises(RunError, match="state-00000005 is damaged"):
                read_state(path.parent)
    path.write_text(json.dumps(signed(facts)))
    assert read_state(path.parent).facts == facts


def test_a_state_of_an_older_version_without_a_checksum_of_its_facts_loads(tmp_path):
    whole = small_files.write_state(tmp_path)
    path = tmp_path / "state-00000005" / "state.json"
    older = {k: v for k, v in whole["facts"].items() if k != "checksum"} | {"version": 1}
    path.write_text(json.dumps(older))
    assert small_files.equal(small_files.read_state_whole(tmp_path)["weights"], whole["weights"])


def test_a_state_of_a_newer_version_is_neither_damaged_nor_passed_over(tmp_path):
    small_files.write_state(tmp_path)
    path = tmp_path / "state-00000005" / "state.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(signed(facts | {"version": 3})))
    with pytest.raises(ValueError, match="has the format 'training-run' 3, this version reads"):
        RunStates(tmp_path, 1).newest()


def test_a_state_reads_no_file_outside_of_it(tmp_path):
    small_files.write_state(tmp_path)
    path = tmp_path / "state-00000005" / "state.json"
    facts = json.loads(path.read_text())
    for name in ("../other", "/etc/passwd", "a/../../b", "", "x\x1b[31m"):
        files = facts["files"] | {name: "0" * 64}
        path.write_text(json.dumps(signed(facts | {"files": files})))
        with pytest.raises(RunError, match="is damaged") as error:
            read_state(path.parent)
        assert sentence(str(error.value))
