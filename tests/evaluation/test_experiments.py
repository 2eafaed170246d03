"""The table of experiments, and what is asked of real subjects: pairs, prompts, references."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdiff_core.commands import experiments as command
from mmdiff_core.commands import main
from mmdiff_core.evaluation import experiment_sets as S
from mmdiff_core.evaluation.drawing import read_template
from mmdiff_core.evaluation.experiment_graphs import check_template, graph_of, with_defaults
from mmdiff_core.evaluation.experiments import (
    BASE,
    EXPERIMENTS,
    FRAMES,
    NOISE_WALK,
    OWN_NOISE,
    PROMPT_WALK,
    REGIONS,
    SELF,
    TOKENS,
    WINDOWS,
    Cell,
    differences,
    paired,
)
from mmdiff_core.evaluation.results import Column, ImageResult, Row
from mmdiff_core.evaluation.sets import Subject

from support.paths import PACK

PORTRAITS = PACK / "api/portraits.json"
NOUNS = {"ann": "woman", "bea": "woman", "cat": "woman", "dan": "man", "eve": "engineer"}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory) -> list[Subject]:
    root, made = tmp_path_factory.mktemp("subjects"), []
    for number, (name, noun) in enumerate(NOUNS.items()):
        files = []
        for i in range(5):
            path = root / f"{name}-{i}.png"
            Image.new("RGB", (60, 80), (40 * number + 5 * i, 90, 200)).save(path)
            files.append(path)
        made.append(Subject(name, noun, tuple(files)))
    return made


def embed(subject: Subject) -> np.ndarray:
    """Ann and Cat are alike, Bea is not."""
    turn = {"ann": 0.0, "cat": 0.1, "bea": 1.5}.get(subject.name, 0.0)
    return np.array([np.cos(turn), np.sin(turn)])


def names(groups) -> list[str]:
    made = []
    for group in groups:
        made.append("+".join(each.name for each in group))
    return made


# ---------------------------------------------------------------- the table


def test_the_names_of_the_command_are_the_experiments():
    assert tuple(EXPERIMENTS) == command.NAMES


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_rows_have_names_and_folders_of_their_own_and_only_rows_are_compared(experiment):
    rows = [cell.name for cell in experiment.cells]
    assert len({cell.folder for cell in experiment.cells}) == len(set(rows)) == len(rows)
    assert {name for pair in experiment.compared for name in pair} <= set(rows)
    real = S.with_real_weights(experiment)
    assert real.cells and all(cell.drawn_by != "fine-tuned" for cell in real.cells)


def test_all_that_was_to_be_compared_has_a_row():
    cells = [cell for each in EXPERIMENTS.values() for cell in each.cells]
    assert {c.references for c in EXPERIMENTS["references"].cells} == {1, 2, 3, 4, 5}
    looks = {"clean", "half covered", "blurred", "dark", "mirrored", "other pose"}
    assert {c.shown for c in EXPERIMENTS["conditions"].cells} == looks
    asked = {(c.subjects, bool(c.held), c.place) for c in EXPERIMENTS["subjects"].cells}
    wanted = {(n, held, p) for n in (2, 3) for held in (False, True) for p in ("plain", "busy")}
    assert wanted <= asked
    held = {c.held for c in EXPERIMENTS["constraints"].cells}
    assert held == {(), (TOKENS,), REGIONS, (*REGIONS, SELF)}
    assert {c.frames for c in cells} == {"", OWN_NOISE, NOISE_WALK, PROMPT_WALK}
    assert {c.drawn_by for c in EXPERIMENTS["tuning"].cells} == {"MM-Diff", BASE, "fine-tuned"}


def row(name: str, values: dict[str, float]) -> Row:
    made = [ImageResult("", "", unit, 0, "", (), {"x": v}) for unit, v in values.items()]
    return Row(name, tuple(made), len(made))


def test_differences_are_taken_image_by_image():
    own = row("half covered", {"a": 0.5, "b": 0.2, "c": 0.9})
    clean = row("clean", {"a": 1.0, "b": 0.7, "d": 0.0})
    found = paired(own, clean, "x")
    assert found.mean == pytest.approx(-0.5) and found.units == 2
    assert (found.low, found.high) == pytest.approx((-0.5, -0.5))
    told = differences(EXPERIMENTS["conditions"], [clean, own], Column("x", "likeness", ""))
    assert told[0].startswith("likeness, differences in pairs")
    assert "half covered less clean: -0.500 (-0.500 to -0.500)" in told[0]
    assert differences(EXPERIMENTS["conditions"], [clean], Column("x", "", "")) == ()


# ---------------------------------------------------------------- who together, in which prompts


def test_every_group_comes_once_and_alike_are_the_nearest_of_one_noun(subjects):
    two = Cell("", 2)
    assert names(S.groups_of(Cell(""), subjects, embed)) == list(NOUNS)
    assert names(S.groups_of(two, subjects, embed))[:2] == ["ann+bea", "bea+cat"]
    assert len(S.groups_of(two, subjects[:2], embed)) == 1
    same = names(S.groups_of(Cell("", 2, who="same"), subjects, embed))
    assert same == ["ann+bea", "bea+cat", "cat+ann"]
    assert names(S.groups_of(Cell("", 2, who="alike"), subjects, embed)) == ["ann+cat", "bea+cat"]


def test_a_row_asks_for_the_same_subjects_and_seeds_as_the_others(subjects, tmp_path):
    cells = (Cell("", 2), Cell("", 2, place="busy", held=REGIONS))
    asked = []
    for cell in cells:
        groups = S.groups_of(cell, subjects, embed)
        asked.append(S.asked_of(cell, groups, 7, 100, tmp_path))
    for one, other in zip(*asked, strict=True):
        assert one.case.subjects == other.case.subjects and one.seed == other.seed
        assert one.case.marked != other.case.marked
    assert [each.seed for each in asked[0]] == list(range(100, 107))
    assert asked[0][0].case.marked == "a photo of a woman<|s1|> and a woman<|s2|> on the beach"
    assert asked[0][4].case.prompt.startswith("a photo of an engineer and a woman ")
    assert asked[0][5].case.prompt.endswith("in the snow"), "the second turn has another place"


def test_frames_are_asked_in_batches_and_a_prompt_walk_leads_to_another_place(subjects, tmp_path):
    cell = Cell("", frames=PROMPT_WALK)
    asked = S.asked_of(cell, S.groups_of(cell, subjects, embed), 3 * FRAMES, 0, tmp_path)
    assert len(asked) == 3
    assert asked[0].toward == "a photo of a woman<|s1|> in the snow"


@pytest.mark.parametrize(
    ("name", "count", "told"),
    [
        ("references", 5, "5 images of 'ann', there are 4"),
        ("subjects", 2, "3 subjects, the set has 2"),
        ("conditions", 5, ""),
    ],
)
def test_what_the_images_folder_lacks_is_told(name, count, told, subjects):
    given = []
    for each in subjects[:count]:
        given.append(Subject(each.name, each.noun, each.references[:4]))
    assert told in "; ".join(S.lacking(EXPERIMENTS[name], given))
    assert bool(S.lacking(EXPERIMENTS[name], given)) == bool(told)
    assert S.lacking(EXPERIMENTS["alike"], subjects[3:]) == ("two subjects with the same noun",)


# ---------------------------------------------------------------- references


def picture() -> Image.Image:
    """Black on the left, white on the right."""
    image = Image.new("RGB", (200, 200), "black")
    image.paste("white", (100, 0, 200, 200))
    return image


def test_a_reference_is_covered_blurred_darkened_or_mirrored_and_nothing_else():
    dots = {}
    for shown in ("clean", "half covered", "blurred", "dark", "mirrored"):
        dots[shown] = np.asarray(S.prepared(picture(), shown), np.float32)
        assert dots[shown].shape == (S.SIDE, S.SIDE, 3)
    clean, middle = dots["clean"], S.SIDE // 2
    assert (dots["mirrored"] == clean[:, ::-1]).all()
    assert (dots["half covered"][:middle] == clean[:middle]).all()
    assert (dots["half covered"][middle:] == 127).all()
    assert dots["dark"] == pytest.approx(0.35 * clean, abs=1)
    edges = [np.abs(np.diff(dots[name], axis=1)).max() for name in ("clean", "blurred")]
    assert edges[1] < edges[0] / 10
    assert dots["blurred"].mean() == pytest.approx(clean.mean(), rel=0.02)


def test_an_upright_photo_is_padded_to_the_same_square_as_a_wide_one():
    tall = S.prepared(Image.new("RGB", (60, 120), "black"))
    assert tall.size == (S.SIDE, S.SIDE) and tall.getpixel((2, 300)) == (255, 255, 255)
    assert tall.getpixel((S.SIDE // 2, 300)) == (0, 0, 0)


def test_another_pose_is_the_next_photo_and_a_file_is_prepared_once(subjects, tmp_path):
    ann = subjects[0]
    (clean,) = S.references_of(Cell(""), ann, tmp_path)
    (other,) = S.references_of(Cell("", shown="other pose"), ann, tmp_path)
    (second,) = S.references_of(Cell(""), Subject("x", "y", ann.references[1:]), tmp_path)
    assert other == second != clean
    written = clean.stat().st_mtime_ns
    assert len(S.references_of(Cell("", references=5), ann, tmp_path)) == 5
    assert clean.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="'upside down'"):
        S.prepared(picture(), "upside down")


# ---------------------------------------------------------------- graphs


def graph(cell: Cell, subjects, tmp_path) -> dict:
    template = read_template(PORTRAITS)
    groups = S.groups_of(cell, subjects, embed)
    asked = S.asked_of(cell, groups, FRAMES, 7, tmp_path)[0]
    uploaded = []
    for own in asked.files:
        uploaded.append([path.name for path in own])
    return graph_of(template, cell, asked, uploaded)


def kinds(graph: dict) -> list[str]:
    return sorted(node["class_type"] for node in graph.values())


def test_several_references_go_to_one_encoder_as_a_batch(subjects, tmp_path):
    made = graph(Cell("", references=3), subjects, tmp_path)
    assert kinds(made).count("LoadImage") == 3 and kinds(made).count("ImageBatch") == 2
    assert made["subject_1_of_set"]["inputs"]["image"] == ["references_1_3", 0]
    assert made["references_1_3"]["inputs"]["image1"] == ["references_1_2", 0]


def test_boxes_stand_side_by_side_and_hold_what_the_row_says(subjects, tmp_path):
    made = graph(Cell("", 3, held=(TOKENS,)), subjects, tmp_path)
    held = made["regions_of_set"]["inputs"]
    assert made["text"]["inputs"]["subjects"] == ["regions_of_set", 0]
    assert held["hold_tokens"] and not held["hold_nouns"] and not held["bound_self_attention"]
    boxes = json.loads(held["boxes"])
    assert [box["subject"] for box in boxes] == [1, 2, 3]
    for left, right in zip(boxes, boxes[1:], strict=False):
        assert left["x"] + left["width"] < right["x"]
    assert boxes[2]["x"] + boxes[2]["width"] <= 1
    plain = graph(Cell("", 3, held=(TOKENS,), drawn_by=BASE), subjects, tmp_path)
    assert not any(kind.startswith("MMDiffC") for kind in kinds(plain))


def test_a_noise_walk_is_a_quarter_of_a_circle_between_two_seeds(subjects, tmp_path):
    made = graph(Cell("", frames=NOISE_WALK), subjects, tmp_path)
    assert "KSampler" not in kinds(made) and kinds(made).count("LatentAdd") == FRAMES
    for frame in range(FRAMES):
        a, b = (made[f"{part}_{frame}"]["inputs"]["multiplier"] for part in "ab")
        assert a**2 + b**2 == pytest.approx(1)
    assert made["a_0"]["inputs"]["multiplier"] == 1
    assert made["b_7"]["inputs"]["multiplier"] == pytest.approx(1)
    seeds = {n["inputs"]["noise_seed"] for n in made.values() if n["class_type"] == "RandomNoise"}
    assert seeds == {7, 500_007}
    assert made["decode"]["inputs"]["samples"] == ["frames", 0]


def test_own_noise_has_a_seed_for_each_frame_and_windows_are_the_hosts(subjects, tmp_path):
    made = graph(Cell("", frames=OWN_NOISE), subjects, tmp_path)
    assert kinds(made).count("RandomNoise") == FRAMES
    windowed = graph(Cell("", frames=NOISE_WALK, host=WINDOWS), subjects, tmp_path)
    assert windowed["guider_of_frames"]["inputs"]["model"] == ["windows", 0]
    assert windowed["windows"]["inputs"]["model"] == ["apply", 0]


@pytest.mark.parametrize("drawn_by", ["MM-Diff", BASE])
def test_a_prompt_walk_mixes_two_prompts_from_one_noise(drawn_by, subjects, tmp_path):
    made = graph(Cell("", frames=PROMPT_WALK, drawn_by=drawn_by), subjects, tmp_path)
    shares = [made[f"text_{n}"]["inputs"]["conditioning_to_strength"] for n in range(FRAMES)]
    assert shares[0] == 0 and shares[-1] == 1 and sorted(shares) == shares
    assert kinds(made).count("RandomNoise") == 1
    here, there = made["text"]["inputs"], made["text_there"]["inputs"]
    assert here.get("subjects") == there.get("subjects") and here["text"] != there["text"]
    assert ("<|" in there["text"]) == (drawn_by != BASE)


def test_inputs_that_a_newer_server_asks_for_have_their_defaults_and_windows_draw_no_image_more():
    asked = {"dim": ["INT", {}], "freenoise": ["BOOLEAN", {"default": False}]}
    kinds = {"ContextWindowsManual": {"input": {"required": asked}}}
    graph = {"windows": {"class_type": "ContextWindowsManual", "inputs": {"dim": 0}}}
    older = with_defaults(graph, kinds.get)["windows"]["inputs"]
    assert older == {"dim": 0, "freenoise": False}
    asked["causal_window_fix"] = ["BOOLEAN", {"default": True}]
    newer = with_defaults(graph, kinds.get)["windows"]["inputs"]
    assert newer == {"dim": 0, "freenoise": False, "causal_window_fix": False}
    assert graph["windows"]["inputs"] == {"dim": 0}
    assert with_defaults(graph, lambda kind: None) == graph, "no such node: the server says so"


def test_a_graph_with_another_sampler_is_told(tmp_path):
    made = json.loads(PORTRAITS.read_text())
    made["sample"]["class_type"] = "KSamplerAdvanced"
    made["sample"]["inputs"]["noise_seed"] = made["sample"]["inputs"].pop("seed")
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match="'KSamplerAdvanced'.*KSampler"):
        check_template(read_template(path))


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "say where to draw"),
        (["--small-world", "--comfy", "http://127.0.0.1:9"], "say where to draw"),
        (["--small-world", "--count", "7"], "at least 8"),
        (["--comfy", "http://127.0.0.1:9"], "--data DIR"),
        (["--comfy", "http://127.0.0.1:9", "--data", ".", "--kind", "things"], "--graph FILE"),
    ],
)
def test_a_wrong_command_line_is_one_line_of_error(more, told, tmp_path, capsys):
    assert main(["experiments", "references", str(tmp_path / "out"), *more]) == 1
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_the_graph_for_portraits_is_where_the_command_looks_for_it():
    assert Path(command.PORTRAITS) == PORTRAITS
