"""The command that encodes a run's images, in one process and several, and the run that follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmdiff_core.commands import main
from mmdiff_core.training.data.encoded.recipe import read_manifest
from mmdiff_core.training.data.encoded.shards import EncodedShards

from support.encoded import write_run
from support.launched import COMMAND, launch
from support.photos import write_jsonl

pytestmark = pytest.mark.usefixtures("without_gpu")

# the command, in which process 1 dies when it is to encode its third image
DIES = """
import os
from mmdiff_core.training.data.encoded import making
calls, known = [], making.encoded_tensors
def encoded_tensors(*given):
    calls.append(given)
    if os.environ["RANK"] == "1" and len(calls) == 3:
        os._exit(9)
    return known(*given)
making.encoded_tensors = encoded_tensors
"""


def held(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Everything in a folder of shards, by the records' keys."""
    shards = EncodedShards(folder, read_manifest(folder).recipe)
    return {key: shards.read(key) for key in sorted(shards._places)}


def equal(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(same_tensors(one[key], two[key]) for key in one)


def same_tensors(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def runs(tmp_path):
    """The same run with its images encoded into three folders, and without."""
    records = write_jsonl(tmp_path, 9)
    folders = {name: tmp_path / name for name in ("one", "two", "three")}
    made = {}
    for name, folder in folders.items():
        made[name] = write_run(tmp_path / f"{name}.json", records, encoded=str(folder))
    return made | {"plain": write_run(tmp_path / "plain.json", records)}


def test_two_processes_encode_the_same_as_one_also_when_one_died_between(runs, tmp_path, capsys):
    assert main(["encode", str(runs["one"]), "--cpu"]) == 0
    assert "9 images encoded here" in capsys.readouterr().err
    arguments = ["encode", str(runs["two"]), "--cpu", "--shard", "1"]
    ended = launch(arguments)
    assert [process.code for process in ended] == [0, 0], ended
    assert "process 0: done: 5 images" in ended[0].said
    assert "process 1: done: 4 images" in ended[1].said
    whole = held(tmp_path / "one")
    assert len(whole) == 9 and equal(held(tmp_path / "two"), whole)
    first, second = launch([*arguments[:1], str(runs["three"]), *arguments[2:]], DIES + COMMAND)
    assert second.code == 9 and first.code == 1 and "another process ended" in first.said
    assert read_manifest(tmp_path / "three").sets == ()
    assert len(held(tmp_path / "three")) == 7
    assert main(["encode", str(runs["three"]), "--cpu"]) == 0
    assert "2 images encoded here" in capsys.readouterr().err
    assert equal(held(tmp_path / "three"), whole)
    manifests = [read_manifest(tmp_path / name) for name in ("one", "two", "three")]
    assert manifests[0] == manifests[1] == manifests[2]


def test_a_run_on_encoded_images_trains_the_same_adapter(runs, tmp_path, capsys):
    assert main(["train", str(runs["one"]), str(tmp_path / "out"), "--cpu"]) == 1
    assert "make them first: python -m mmdiff_core encode" in capsys.readouterr().err
    assert main(["encode", str(runs["one"]), "--cpu"]) == 0
    trained = []
    for name in ("plain", "one"):
        out = tmp_path / f"out-{name}"
        assert main(["train", str(runs[name]), str(out), "--cpu"]) == 0
        trained.append(load_file(out / "adapter.safetensors"))
    assert trained[0].keys() == trained[1].keys()
    for name, weight in trained[0].items():
        assert torch.allclose(weight, trained[1][name], atol=1e-6)


def test_the_command_says_what_is_missing(runs, tmp_path, capsys):
    assert main(["encode", str(runs["plain"])]) == 1
    assert "the run has no data.encoded" in capsys.readouterr().err
    facts = json.loads(runs["one"].read_text())
    (tmp_path / "drawn.json").write_text(json.dumps(facts | {"data": {"kind": "small-world"}}))
    assert main(["encode", str(tmp_path / "drawn.json")]) == 1
    assert "data.kind is 'small-world', expected \"files\"" in capsys.readouterr().err
    assert main(["encode", str(runs["one"]), "--shard", "0"]) == 1
    assert "--shard is 0, expected 1 to 10000" in capsys.readouterr().err
