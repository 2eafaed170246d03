"""The protocol "small world": perfect renderings are perfect, and images are drawn once."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from mmdiff_core.commands import main
from mmdiff_core.evaluation.report import write_report
from mmdiff_core.lab import protocol
from mmdiff_core.small_world.trials import true_image

from support.remembered import remembered


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Runs in which the adapter draws what was asked for and the base always the first trial."""
    out, calls, patch = tmp_path_factory.mktemp("small_world"), [], pytest.MonkeyPatch()
    first: list[torch.Tensor] = []

    def draw_with(task, question, without):
        def answer(trials):
            calls.append(len(trials))
            images = [true_image(trial.scene) for trial in trials]
            first.extend(images[:1])
            return torch.stack([first[0]] * len(images) if without else images)

        return answer

    task = SimpleNamespace(bridge=SimpleNamespace(close=lambda: None))
    patch.setattr(protocol, "load_task", lambda path: task)
    patch.setattr(protocol, "draw_with", draw_with)
    embed = remembered(protocol.load_embed())
    patch.setattr(protocol, "load_embed", lambda: embed)
    runs = [protocol.run_small_world(out, 8, None, "a command", lambda text: None)]
    runs += [protocol.run_small_world(out, 8, None, "a command", lambda text: None)]
    patch.undo()
    return out, calls, runs


def test_what_was_asked_for_has_full_marks_and_anything_else_has_not(drawn):
    ours, base = drawn[2][0].rows
    for column in ("prompt", "exact", "complete", "seen"):
        assert ours.summary(column).mean == 1, column
        assert base.summary(column).mean < 0.6, column
    assert ours.failures() == {} and "another background" in base.failures()


def test_the_floor_is_below_the_oracle_in_every_column_that_reads_individuals(drawn):
    bounds = drawn[2][0].bounds
    for column in ("likeness", "exact", "complete", "seen"):
        assert bounds[column].floor.mean < bounds[column].oracle.mean, column
    assert bounds["exact"].oracle.mean == 1 and bounds["prompt"].floor.mean == 1


def test_images_that_are_there_are_not_drawn_again_and_score_the_same(drawn):
    out, calls, runs = drawn
    assert sum(calls) == 2 * 8
    assert runs[0] == runs[1]
    assert len(list(out.rglob("images/*/*/0.png"))) == 2 * 8


def test_its_report_has_every_question_and_the_hashes_of_what_drew(drawn, tmp_path):
    write_report(drawn[2][0], tmp_path)
    told = json.loads((tmp_path / "results.json").read_text())
    assert {image["group"] for image in told["rows"][0]["images"]} == {
        "one",
        "two different",
        "two of a class",
        "three",
    }
    assert len(told["weights"]) == 1 and all(len(h) == 64 for h in told["models"].values())


@pytest.mark.parametrize(("more", "told"), [((), "--out DIR"), (("--count", "3"), "at least 4")])
def test_a_wrong_command_line_is_told(more, told, tmp_path, capsys):
    out = () if told == "--out DIR" else ("--out", str(tmp_path))
    assert main(["evaluate", "small-world", *out, *more]) == 1
    assert told in capsys.readouterr().err
