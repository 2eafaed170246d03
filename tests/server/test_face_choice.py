"""Which face of several: what the encoder tells of its choice, at no cost of a second look, and
what the page is given to choose from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmdiff_core.config import GENERAL
from mmdiff_core.host.encode import encode_subject
from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.references.pixels import reduced

from support import make
from support.cases import CHECKPOINT
from support.faces import THREE, picture
from support.graphs import node
from support.server import Server
from tiny_model import build


@pytest.fixture(scope="module")
def vision():
    return build.clip_vision()


@pytest.fixture
def looks(analyser, monkeypatch) -> list[str]:
    """Every picture that faces were looked for in."""
    seen, detect = [], type(analyser).detect
    monkeypatch.setattr(
        type(analyser),
        "detect",
        lambda self, image, label="image": seen.append(label) or detect(self, image, label),
    )
    return seen


def images(*pictures) -> torch.Tensor:
    return torch.stack([torch.from_numpy(p).float() / 255 for p in pictures])


def near(box, disc: tuple[int, int, int]) -> bool:
    x, y, radius = disc
    return all(
        abs(a - b) < 12
        for a, b in zip(box, (x - radius, y - radius, x + radius, y + radius), strict=True)
    )


@pytest.mark.parametrize("asked, used", [(0, 2), (1, 1), (2, 2), (3, 3)])
def test_the_choice_is_told_with_all_it_was_made_from(analyser, vision, looks, asked, used):
    mmdiff = load_mmdiff(CHECKPOINT)
    (choice,) = encode_subject(
        mmdiff, vision, images(picture(*THREE)), analyser, "ann", which_face=asked
    ).faces
    assert choice.used == used and len(choice.boxes) == 3
    assert all(near(box, disc) for box, disc in zip(choice.boxes, THREE, strict=True))
    assert looks == ["ann, image 1 of 1"], "each picture is looked at once"


def test_a_remembered_encoding_tells_its_choice_again_without_a_look(analyser, vision, looks):
    mmdiff, shown = load_mmdiff(CHECKPOINT), images(picture(*THREE), picture(THREE[1]))
    first = encode_subject(mmdiff, vision, shown, analyser, "ann").faces
    assert [len(choice.boxes) for choice in first] == [3, 1] and len(looks) == 2
    again = encode_subject(mmdiff, vision, shown.clone(), analyser, "ben").faces
    assert again == first and len(looks) == 2


def test_only_faces_in_the_region_are_to_choose_from(analyser, vision):
    region = torch.zeros(600, 900)
    region[:, 400:] = 1
    (choice,) = encode_subject(
        load_mmdiff(CHECKPOINT),
        vision,
        images(picture(*THREE)),
        analyser,
        "ann",
        which_face=2,
        region=region,
    ).faces
    assert choice.used == 2 and [
        near(box, disc) for box, disc in zip(choice.boxes, THREE[1:], strict=True)
    ] == [True, True]


def test_there_is_nothing_to_choose_without_faces(vision, analyser, looks):
    general = make.random_mmdiff(replace(make.narrow_config("sdxl"), variant=GENERAL))
    assert encode_subject(general, vision, images(picture(*THREE)), analyser, "fox").faces == ()
    assert (
        encode_subject(
            load_mmdiff(CHECKPOINT),
            vision,
            images(picture(*THREE)),
            analyser,
            "ann",
            clip_only=True,
        ).faces
        == ()
    )
    assert looks == []


def test_large_pictures_are_shown_smaller_in_their_shape_and_small_ones_as_they_are():
    small = torch.rand(1, 300, 200, 3)
    assert reduced(small) is small
    assert reduced(torch.rand(2, 1000, 2000, 3)).shape == (2, 384, 768, 3)


# ---------------------------------------------------------------- through a server


def portrait(names: list[str], **inputs) -> dict:
    """A graph that encodes pictures of the input folder as one subject."""
    prompt = {
        "tiny": node("MMDiffLoadTinyReferenceModel"),
        "mmdiff": node("MMDiffLoad", checkpoint="tiny-portrait"),
        "faces": node("MMDiffLoadFaceAnalysis", model="discs", device="cpu"),
        "subject": node(
            "MMDiffSubjectEncoder",
            mmdiff=["mmdiff", 0],
            clip_vision=["tiny", 3],
            name="ann",
            weight=1.0,
            face=0,
            faces=["faces", 0],
            **inputs,
        ),
        "show": node("PreviewImage", images=["subject", 1]),
    }
    earlier = None
    for i, name in enumerate(names):
        prompt[f"load{i}"] = node("LoadImage", image=name)
        if earlier:
            prompt[f"batch{i}"] = node("ImageBatch", image1=earlier, image2=[f"load{i}", 0])
        earlier = [f"batch{i}" if earlier else f"load{i}", 0]
    prompt["subject"]["inputs"]["image"] = earlier
    return prompt


def put(server: Server, tmp_path: Path, name: str, *discs: tuple[int, int, int]) -> str:
    Image.fromarray(picture(*discs)).save(tmp_path / name)
    return server.upload(tmp_path / name)


def previews(server: Server) -> set[str]:
    return {p.name for p in (server.home / "temp").rglob("*.png")}


def test_the_page_gets_each_pictures_faces_and_a_file_of_those_with_several(
    server: Server, tmp_path
):
    names = [put(server, tmp_path, "three.png", *THREE), put(server, tmp_path, "one.png", THREE[1])]
    before = previews(server)
    shown = server.run(portrait(names))["outputs"]["subject"]
    several, single = shown["faces"]
    assert (several["width"], several["height"], several["used"], len(several["boxes"])) == (
        900,
        600,
        2,
        3,
    )
    box = several["boxes"][0]
    assert near((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]), THREE[0])
    assert single["picture"] is None and (single["used"], len(single["boxes"])) == (1, 1)
    (path,) = (server.home / "temp").rglob(several["picture"]["filename"])
    with Image.open(path) as file:
        assert file.size == (768, 512)
    seen, shown_again = 2, 2
    assert len(previews(server) - before) == seen + shown_again + 1, (
        "what was seen, PreviewImage's own, and one picture to pick from"
    )


def test_where_every_picture_has_one_face_nothing_is_written_or_sent_to_pick_from(
    server: Server, tmp_path
):
    name = put(server, tmp_path, "alone.png", THREE[2])
    before = previews(server)
    shown = server.run(portrait([name]))["outputs"]["subject"]
    assert list(shown["faces"]) == [] and len(previews(server) - before) == 1 + 1
