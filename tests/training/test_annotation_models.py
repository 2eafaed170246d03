"""The annotation with its real models, tiny and untrained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mmdiff_core.commands import main
from mmdiff_core.training.data.annotation import folder as folders
from mmdiff_core.training.data.annotation import models, pipeline

from support.photos import SIZES, picture
from support.tiny_annotators import write_models


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory) -> Path:
    """Folders of models: blip, blip2, dino, sam, sam2."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def cpu():
    return torch.device("cpu")


@pytest.mark.parametrize("name", ["blip", "blip2"])
def test_a_captioner_loads_from_a_folder_and_captions(tiny_models, cpu, name):
    captioner = models.BlipCaptioner(tiny_models / name, cpu)
    caption = captioner(picture(0, SIZES[0])[0])
    assert isinstance(caption, str) and caption == captioner(picture(0, SIZES[0])[0])


def test_the_grounder_loads_from_a_folder_and_finds_what_transformers_finds(tiny_models, cpu):
    grounder, image = (
        models.DinoGrounder(tiny_models / "dino", cpu, threshold=0.0),
        picture(0, SIZES[0])[0],
    )
    found = grounder(image, ["dog", "hot dog"])
    assert len(found) == 8 and {f.word for f in found} <= {"dog", "hot dog"}
    inputs = grounder.prepared(images=image, text="dog. hot dog.")
    with torch.inference_mode():
        out = grounder.model(**inputs)
    expected = grounder.processor.post_process_grounded_object_detection(
        out, inputs["input_ids"], threshold=0.0, text_threshold=0.0, target_sizes=[image.size[::-1]]
    )[0]
    assert torch.allclose(torch.tensor([f.box for f in found]), expected["boxes"], atol=1e-3)
    # [CLS] dog . hot dog . [SEP]
    probability = out.logits[0].sigmoid()
    for query, f in enumerate(found):
        assert f.score == pytest.approx(
            float(max(probability[query, 1], probability[query, [3, 4]].mean()))
        )


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_a_segmenter_loads_from_a_folder_and_gives_a_mask_for_each_box(tiny_models, cpu, name):
    masks = models.SamSegmenter(tiny_models / name, cpu)(
        picture(0, SIZES[0])[0], [(5, 20, 26, 50), (70, 30, 90, 44), (0, 0, 96, 64)]
    )
    assert masks.shape == (3, 64, 96) and masks.dtype == bool


def test_the_command_runs_from_folders_to_records_and_says_what_it_did(
    tiny_models, album, tmp_path, capsys, monkeypatch
):
    for number in range(4):
        (album / f"{number}.txt").write_text("a dog")
    # untrained masks may be any size
    monkeypatch.setattr(pipeline, "fits", lambda mask, rules: mask.any())
    args = [
        "annotate",
        str(album),
        str(tmp_path / "out.jsonl"),
        "--grounder",
        str(tiny_models / "dino"),
        "--segmenter",
        str(tiny_models / "sam2"),
        "--device",
        "cpu",
        "--threshold",
        "0",
        "--previews",
        "1",
    ]
    assert main(args) == 0
    told = capsys.readouterr().err
    images = folders.repaired_images(tmp_path / "out.jsonl") + folders.repaired_images(
        tmp_path / "out_rejected.jsonl"
    )
    assert (
        "4 images to do" in told
        and "4/4" in told
        and sorted(images) == [f"album/{n}.png" for n in range(4)]
    )
    assert main(args) == 0 and "0 images to do, 4 are done" in capsys.readouterr().err


def test_the_command_says_what_is_missing(tiny_models, album, tmp_path, capsys):
    def says(*args: object) -> str:
        assert main(["annotate", *map(str, args)]) == 1
        return capsys.readouterr().err

    out, dino, sam = tmp_path / "out.jsonl", tiny_models / "dino", tiny_models / "sam"
    both = ("--grounder", dino, "--segmenter", sam)
    assert "must end in .jsonl" in says(album, tmp_path / "out.json", *both)
    assert "is not a folder" in says(tmp_path / "nowhere", out, *both)
    assert "4 images have no caption" in says(album, out, *both)
    assert "is a 'sam', expected one of grounding-dino" in says(
        album, out, "--captioner", tiny_models / "blip", "--grounder", sam, "--segmenter", sam
    )
    assert "its config.json cannot be read" in says(album, out, *both, "--captioner", os.devnull)
