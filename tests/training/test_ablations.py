"""The ablations: their losses in the trainer, their arms, and a whole small run of two of them."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import pytest
import torch

from mmdiff_core.small_world.examples import SmallWorldExamples
from mmdiff_core.small_world.trials import Tally
from mmdiff_core.training.config import ConstraintConfig, RunConfig

from support.small_task import RUN, build


def with_constraint(**wanted):
    return build(dataclasses.replace(RUN, constraint=ConstraintConfig(**wanted)))


@pytest.fixture(scope="module")
def pairs():
    source = SmallWorldExamples(caption_dropout=0, subject_dropout=0, count=2)
    return source.batch(0, 2)


@pytest.mark.parametrize("wrong", [{"form": "l2"}, {"leak": -1.0}])
def test_a_constraint_that_is_not_known_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunConfig.from_dict({"constraint": wrong})


def test_the_form_of_the_constraint_changes_its_terms_and_nothing_else(pairs):
    terms = {}
    for form in ("l1", "dice"):
        task = with_constraint(form=form, text=0.1, image=0.1)
        terms[form] = task(pairs)
        task.bridge.close()
    for name in ("denoising", "text_inside", "image_inside"):
        assert torch.equal(terms["l1"][name], terms["dice"][name])
    for name in ("text_constraint", "image_constraint"):
        assert 0 < terms["dice"][name] < 1
        assert terms["dice"][name] != terms["l1"][name]


def test_the_leak_is_part_of_the_loss_and_its_gradient_reaches_the_subjects(pairs):
    plain, leaking = with_constraint(text=0, image=0), with_constraint(text=0, image=0, leak=2.0)
    without, terms = plain(pairs), leaking(pairs)
    assert "leak" not in without and terms["leak"] > 0
    assert torch.allclose(terms["loss"], without["loss"] + 2 * terms["leak"])
    gradients = []
    for task, of_task in ((plain, without), (leaking, terms)):
        of_task["loss"].backward()
        gradients.append(task.adapter.subjects.state_dict(keep_vars=True))
        task.bridge.close()
    changed = [
        name
        for name, weight in gradients[0].items()
        if weight.grad is not None and not torch.equal(weight.grad, gradients[1][name].grad)
    ]
    assert changed


def test_nothing_leaks_where_an_image_has_one_subject():
    source = SmallWorldExamples(caption_dropout=0, subject_dropout=0, count=1)
    task = with_constraint(leak=1.0)
    assert task(source.batch(0, 2))["leak"] == 0
    task.bridge.close()


def test_every_arm_is_a_run_that_the_trainer_accepts_and_differs_from_the_recipe():
    from mmdiff_core.lab.arms import ARMS, run_of

    runs = {arm.name: run_of(arm, 1, 400, 160) for arm in ARMS}
    assert len({run.to_json() for run in runs.values()}) == len(ARMS)
    assert {run.loop["steps"] for run in runs.values()} == {400}
    assert runs["recipe"].constraint.text and not runs["no_constraint"].constraint.text


def test_packs_give_the_examples_that_the_source_gives_and_come_again_under_new_numbers(tmp_path):
    from mmdiff_core.lab.packs import PackedExamples, make_packs

    make_packs(tmp_path, 2, 4, 1)
    source, straight = PackedExamples(tmp_path, 4), SmallWorldExamples()
    for one, other in zip(source.batch(4, 4), straight.batch(4, 4), strict=True):
        assert one.caption == other.caption and one.index == other.index
        assert torch.equal(one.pixels, other.pixels)
        for mine, its in zip(one.subjects, other.subjects, strict=True):
            assert (mine.span, mine.told) == (its.span, its.told)
            assert torch.equal(mine.references, its.references)
            assert torch.equal(mine.mask, its.mask)
    again = source.batch(12, 4)
    assert [example.index for example in again] == [12, 13, 14, 15]
    assert torch.equal(again[0].pixels, source.batch(4, 4)[0].pixels)
    with pytest.raises(ValueError, match="no pack of 4"):
        source.batch(2, 4)


def test_a_sheet_gives_its_images_back_to_within_a_step_of_8_bits(tmp_path):
    from mmdiff_core.lab.sheets import load_sheet, save_sheet

    images = torch.rand(35, 3, 32, 32)
    save_sheet(images, tmp_path / "sheet.png")
    back = load_sheet(tmp_path / "sheet.png", 35, 32)
    assert back.shape == images.shape and (back - images).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(ValueError, match="room for 64 images, expected 65; give --images"):
        load_sheet(tmp_path / "sheet.png", 65, 32)


def test_processes_that_share_a_number_wait_for_all_of_them(tmp_path):
    from mmdiff_core.lab.ablations import share

    got = []
    late = threading.Thread(target=lambda: (time.sleep(0.3), share(tmp_path, "b.step", 2, 2)))
    late.start()
    got = share(tmp_path, "a.step", 1, 2)
    late.join()
    assert sorted(got) == [1.0, 2.0]
    with pytest.raises(TimeoutError, match="expected 3"):
        share(tmp_path, "a.other", 1, 3, limit=0.2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with one step of two arms, drawn and scored."""
    from mmdiff_core.lab import ablations
    from mmdiff_core.lab.packs import make_packs

    folder = tmp_path_factory.mktemp("ablations")
    plan = ablations.Plan(folder, ("recipe", "routed"), (0,), 4, 1, None, 2, "cpu")
    make_packs(plan.packs, 1, 4, 1)
    for arm in plan.arms:
        ablations.Runs(plan, arm).all()
    return folder, ablations.score_all(folder, plan.cells())


def test_a_run_leaves_an_adapter_images_and_counts(finished):
    from mmdiff_core.checkpoints import checkpoint

    folder, results = finished
    assert set(results) == {"recipe-0", "routed-0"}
    for name, cells in results.items():
        assert not list((folder / name).glob("state-*"))
        assert cells["facts"]["images"] == 4
        assert Tally(**cells["two different"]).pictures == 2 and cells["leakage"] >= 0
        adapter = checkpoint.load(folder / name / "adapter.safetensors")
        assert adapter.config.routed == (name == "routed-0")
    assert json.loads((folder / "results.json").read_text()) == results


def test_an_arm_that_a_signal_stopped_is_not_drawn_and_goes_on_when_it_is_started_again(
    tmp_path, monkeypatch
):
    import os
    import signal

    from mmdiff_core.lab import ablations
    from mmdiff_core.lab.packs import PackedExamples, make_packs

    plan = ablations.Plan(tmp_path, ("recipe",), (0, 1), 4, 2, None, 2, "cpu")
    make_packs(plan.packs, 1, 4, 1)
    drawn, give = [], PackedExamples.batch
    monkeypatch.setattr(ablations, "draw_all", lambda _task, _cells, folder: drawn.append(folder))

    def stop_at_once(source, first, count):
        os.kill(os.getpid(), signal.SIGTERM)
        return give(source, first, count)

    with monkeypatch.context() as once:
        once.setattr(PackedExamples, "batch", stop_at_once)
        ablations.Runs(plan, "recipe").all()
    assert not drawn and list((tmp_path / "recipe-0").glob("state-*"))
    assert not (tmp_path / "recipe-1").exists()
    ablations.Runs(plan, "recipe").all()
    assert [folder.name for folder in drawn] == ["recipe-0", "recipe-1"]
    lines = (tmp_path / "recipe-0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_the_table_has_a_row_for_each_arm_with_every_seed_told(finished):
    from mmdiff_core.lab.ablation_table import table

    _, results = finished
    own = results["recipe-0"]
    lines = table({"recipe-0": own, "recipe-1": own, "leak-0": own}).splitlines()
    arms, differences = lines[:4], lines[5:]
    assert [line.split("|")[2].strip() for line in arms[2:]] == ["2", "1"]
    assert len({line.count("|") for line in arms}) == 1
    assert [line.split("|")[3].strip()[:4] for line in differences[2:]] == ["", "+0.0"]
