"""The backend of Load Face Analysis through a real server: chosen, left out, unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from support.faces import THREE, picture
from support.graphs import node
from support.server import Server


@pytest.fixture(scope="module")
def photo(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("photo") / "backend_discs.png"
    Image.fromarray(picture(*THREE)).save(path)
    return server.upload(path)


def boxes(server: Server, photo: str, **inputs: object) -> str:
    """The boxes that Find Faces tells of three discs."""
    graph = {
        "faces": node("MMDiffLoadFaceAnalysis", model="discs", **inputs),
        "load": node("LoadImage", image=photo),
        "find": node("MMDiffFindFaces", image=["load", 0], faces=["faces", 0]),
        "show": node("PreviewAny", source=["find", 1]),
    }
    (told,) = server.run(graph)["outputs"]["show"]["text"]
    return told


def test_every_backend_finds_the_same_and_old_workflows_name_none(server: Server, photo: str):
    found = boxes(server, photo, device="cpu")
    assert found.count("width") == 3
    for backend in ("auto", "built-in", "insightface"):
        assert boxes(server, photo, device="cpu", backend=backend) == found


@pytest.mark.parametrize(
    "inputs",
    [{"device": "cpu", "backend": "evil"}, {"device": "evil"}, {"device": "cpu", "model": "/etc"}],
)
def test_what_is_not_in_a_list_is_refused(server: Server, photo: str, inputs: dict):
    graph = {
        "faces": node("MMDiffLoadFaceAnalysis", **{"model": "discs", **inputs}),
        "load": node("LoadImage", image=photo),
        "find": node("MMDiffFindFaces", image=["load", 0], faces=["faces", 0]),
        "show": node("PreviewAny", source=["find", 1]),
    }
    with pytest.raises(Exception, match="not in list|expected one of|is no name of"):
        server.run(graph)
