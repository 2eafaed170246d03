"""A file that is not there is told before the run, once, with file, folder and page, also by hosts
that compare a combo's value with its options themselves.
"""

from __future__ import annotations

import json

import pytest

from mmdiff_core.host.doctor import SOURCES

from support.graphs import node
from support.server import Server

GRAPH = {
    "mmdiff": node("MMDiffLoad", checkpoint="portrait_generation"),
    "faces": node("MMDiffLoadFaceAnalysis", model="buffalo_l", device="cpu"),
    "subject": node(
        "MMDiffLoadSubject", mmdiff=["mmdiff", 0], file="Ann.safetensors", name="", weight=1.0
    ),
    "empty": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
    "find": node("MMDiffFindFaces", image=["empty", 0], faces=["faces", 0]),
    "seen": node("PreviewImage", images=["subject", 1]),
    "found": node("PreviewImage", images=["find", 0]),
}
TOLD = {
    "mmdiff": (
        "MM-Diff checkpoint 'portrait_generation' not found",
        "tests/tiny/models/mmdiff",
        "models/mmdiff/portrait_generation/",
        SOURCES["mmdiff"].page,
    ),
    "faces": (
        "det_10g.onnx and w600k_r50.onnx",
        "insightface/models/buffalo_l",
        SOURCES["insightface"].page,
    ),
    "subject": (
        "'Ann.safetensors'",
        "/mmdiff_subjects",
        "Save MM-Diff Subject",
        "19 Save subjects",
    ),
}


@pytest.fixture(scope="module")
def refused(server: Server) -> dict[str, list[dict]]:
    """What the host says of each node of a graph whose files are not there."""
    with pytest.raises(RuntimeError) as error:
        server.queue(GRAPH)
    told = json.loads(str(error.value))["node_errors"]
    return {name: answer["errors"] for name, answer in told.items()}


@pytest.mark.parametrize("name", TOLD)
def test_a_missing_file_is_told_before_the_run_with_its_file_folder_and_page(refused, name):
    (answer,) = refused[name]
    assert answer["type"] == "custom_validation_failed"
    assert [part for part in TOLD[name] if part not in answer["details"].replace("\\", "/")] == []


def test_the_page_learns_which_folders_are_there_and_where_the_others_come_from(info):
    told = info["MMDiffLoad"]["input"]["required"]["checkpoint"][1]["mmdiff_needs"]
    assert "tiny-portrait" in told["installed"] and "portrait_generation" not in told["installed"]
    assert told["pages"] == {"portrait_generation": SOURCES["mmdiff"].page}
    told = info["MMDiffLoadFaceAnalysis"]["input"]["required"]["model"][1]["mmdiff_needs"]
    assert told["installed"] == ["discs", "stand_in"]
    assert told["pages"] == {"buffalo_l": SOURCES["insightface"].page}
    told = info["MMDiffLoadModels"]["input"]["required"]["faces"][1]["mmdiff_needs"]
    assert told["installed"] == ["discs", "stand_in", "(none)"]
