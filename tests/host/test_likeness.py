"""Likeness of generated images and the best of a batch, through ComfyUI's own execution."""

from __future__ import annotations

import pytest
import torch

from mmdiff_core.small_world.scenes import FEET, Identity, Placed, Scene, draw

from support.every_node import prompt_with
from support.graphs import node
from support.in_process import Refused, Sink

ANN = Identity(0.6, 0.1, "stripes", "white", "crown")
BEN = Identity(0.02, 0.45, "dots", "dark", "hat")
CARL = Identity(0.3, 0.8, "bars", "tall", "bow")


def sprite(who: Identity, kind: str = "ghost") -> dict:
    return node(
        "MMDiffSmallWorldSprite",
        kind=kind,
        first_colour=who.first,
        second_colour=who.second,
        pattern=who.pattern,
        eyes=who.eyes,
        accessory=who.accessory,
        references=1,
        seed=0,
    )


def encoder(shown: str, name: str, **more) -> dict:
    given = {"mmdiff": ["world", 4], "image": [shown, 0], "weight": 1.0, "face": 0}
    return node("MMDiffSubjectEncoder", name=name, **given, **more)


def image_of(*placed: tuple[Identity, int]) -> torch.Tensor:
    """A true image [128 128 3] with ghosts at these columns."""
    there = tuple(Placed("ghost", who, x, FEET[1]) for who, x in placed)
    dots = torch.from_numpy(draw(Scene(there, "night", 3))[0].copy()).float()
    return dots.repeat_interleave(4, 0).repeat_interleave(4, 1)


def batch(*images: torch.Tensor) -> torch.Tensor:
    return torch.stack(images)


def ghosts(host, images: torch.Tensor, **inputs) -> dict:
    """A graph that scores Ann and Ben in images."""
    return {
        "world": node("MMDiffSmallWorldLoader"),
        "ann's": sprite(ANN),
        "ben's": sprite(BEN),
        "ann": encoder("ann's", "Ann"),
        "both": encoder("ben's", "Ben", subjects=["ann", 0]),
        "images": host.give(images),
        "likeness": node(
            "MMDiffLikeness",
            **{
                "image": ["images", 0],
                "subjects": ["both", 0],
                "mmdiff": ["world", 4],
                "least": 0.0,
                **inputs,
            },
        ),
    }


def output_of(host, prompt: dict, number: int, of: str = "likeness"):
    """What an output of a node of a graph carries."""
    host.run(prompt | {"sink": node("Sink", value=[of, number])})
    return Sink.taken[0]


RIGHT = image_of((ANN, 2), (BEN, 18))
WITHOUT_BEN = image_of((ANN, 2), (CARL, 18))


def test_individuals_are_found_where_they_stand_and_score_near_one(host):
    (image,) = output_of(host, ghosts(host, batch(RIGHT)), 0).images
    assert min(image.scores) > 0.8 and image.verdicts == ()
    assert [box[0] / 4 for box in image.boxes] == [2, 18]


def test_a_stranger_in_the_place_of_a_subject_leaves_it_missing(host):
    scores = output_of(host, ghosts(host, batch(RIGHT, WITHOUT_BEN)), 0)
    assert scores.images[1].verdicts == ("Ben is missing",)
    assert scores.images[1].worst < scores.scale.least < scores.images[0].worst


def test_an_individual_that_stands_there_twice_is_told(host):
    (image,) = output_of(host, ghosts(host, batch(image_of((ANN, 0), (ANN, 20)))), 0).images
    assert set(image.verdicts) == {"Ben is missing", "Ann is drawn twice"}


def test_images_that_show_nobody_are_scored_and_said_to_miss_everybody(host):
    blank = torch.full((128, 128, 3), 0.4)
    (image,) = output_of(host, ghosts(host, batch(blank)), 0).images
    assert image.verdicts[:2] == ("Ann is missing", "Ben is missing")


def test_an_enlarged_image_gets_the_same_scores_and_boxes_of_its_own_size(host):
    large = RIGHT.repeat_interleave(4, 0).repeat_interleave(4, 1)
    small = output_of(host, ghosts(host, batch(RIGHT)), 0).images[0]
    enlarged = output_of(host, ghosts(host, batch(large)), 0).images[0]
    assert enlarged.scores == pytest.approx(small.scores, abs=1e-5)
    assert enlarged.boxes[0][0] == 4 * small.boxes[0][0]


def test_the_table_tells_the_scale_the_subjects_among_one_another_and_the_cost(host):
    lines = output_of(host, ghosts(host, batch(RIGHT, WITHOUT_BEN)), 2).split("\n")
    assert lines[0].startswith("Scale: cosine") and "among one another" in lines[1]
    assert lines[4].startswith("image 1: Ann ") and lines[4].count("missing") == 0
    assert lines[5].startswith("image 2: Ann ") and lines[5].endswith(". Ben is missing")
    assert "s per image (2 images, " in lines[-1]


def test_every_image_is_marked_and_the_worst_scores_are_a_list(host):
    prompt = ghosts(host, batch(RIGHT, WITHOUT_BEN))
    marked = output_of(host, prompt, 1)
    assert len(marked) == 2 and min(marked.shape[1:3]) >= 384
    # a list: the sink runs once for each, last for the last
    last = output_of(host, prompt, 3)
    assert last == output_of(host, prompt, 0).images[-1].worst


def best(host, images: torch.Tensor, keep: int, **latents) -> dict:
    prompt = ghosts(host, images)
    given = {"images": ["images", 0], "scores": ["likeness", 0], "keep": keep, **latents}
    return prompt | {"best": node("MMDiffPickBest", **given)}


def latents_of(count: int) -> dict:
    samples = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 12, 16, 16).clone()
    return {"samples": samples, "noise_mask": torch.ones(count, 1, 16, 16), "kind": "kept"}


def test_the_best_images_come_first_with_their_latents_and_the_rest_stays_visible(host):
    images = batch(WITHOUT_BEN, RIGHT, torch.full((128, 128, 3), 0.4))
    latents = latents_of(3)
    prompt = best(host, images, 2, latents=["given", 0]) | {"given": host.give(latents)}
    assert torch.equal(output_of(host, prompt, 0, "best"), images[[1, 0]])
    assert torch.equal(output_of(host, prompt, 1, "best"), images[[2]])
    kept = output_of(host, prompt, 2, "best")
    assert kept["samples"][:, 0, 0, 0].tolist() == [1, 0] and kept["batch_index"] == [1, 0]
    assert len(kept["noise_mask"]) == 2 and kept["kind"] == "kept"
    assert len(latents["samples"]) == 3 and "batch_index" not in latents
    assert len(output_of(host, prompt, 5, "best")) == 3
    table = output_of(host, prompt, 6, "best").split("\n")
    assert [line.split(",")[0] for line in table] == ["1. kept", "2. kept", "3. others"]
    assert "prompt" not in " ".join(table).lower()


def test_keeping_more_than_there_are_keeps_all_and_hands_on_no_others(host):
    prompt = best(host, batch(RIGHT), 5)
    assert len(output_of(host, prompt, 0, "best")) == 1
    Sink.taken[:] = ["nothing came"]
    host.run(prompt | {"sink": node("Sink", value=["best", 1])})
    assert Sink.taken == ["nothing came"]


def test_latents_that_were_not_given_are_told_where_they_are_used(host, monkeypatch):
    sent = []
    monkeypatch.setattr(host.executor.server, "send_sync", lambda *event: sent.append(event))
    Sink.taken[:] = ["nothing came"]
    host.run(best(host, batch(RIGHT), 1) | {"sink": node("Sink", value=["best", 2])})
    (error,) = (about for kind, about, _ in sent if kind == "execution_error")
    assert "latents is not connected to MM-Diff Pick Best" in error["exception_message"]
    assert Sink.taken == ["nothing came"]


@pytest.mark.parametrize(
    "latents, said",
    [
        (latents_of(2), "latents is a batch of 2, images of 1"),
        ({"samples": 3}, "expected a LATENT"),
    ],
)
def test_latents_of_another_batch_are_refused(host, latents, said):
    prompt = best(host, batch(RIGHT), 1, latents=["given", 0]) | {"given": host.give(latents)}
    with pytest.raises(Refused, match=said):
        host.run(prompt)


def test_images_that_were_not_scored_are_refused(host):
    prompt = best(host, batch(RIGHT), 1) | {"more": host.give(batch(RIGHT, RIGHT))}
    prompt["best"]["inputs"]["images"] = ["more", 0]
    with pytest.raises(Refused, match="images is a batch of 2, the scores are of 1"):
        host.run(prompt)


def test_references_are_one_for_each_subject_and_take_the_place_of_what_subjects_carry(host):
    given = {"references": ["shown", 0]}
    swapped = {"shown": node("ImageBatch", image1=["ben's", 0], image2=["ann's", 0])}
    image = output_of(host, ghosts(host, batch(RIGHT), **given) | swapped, 0).images[0]
    assert min(image.scores) > 0.8 and image.boxes[0][0] > image.boxes[1][0]
    with pytest.raises(Refused, match="references has 1 images for 2 subjects"):
        host.run(ghosts(host, batch(RIGHT), references=["ann's", 0]))


def test_images_of_another_size_than_the_small_worlds_are_refused(host):
    with pytest.raises(Refused, match="image is 120 x 128 pixels; the small world's images are"):
        host.run(ghosts(host, torch.zeros(1, 128, 120, 3)))


def test_maps_of_another_run_are_refused_and_those_of_this_run_are_used(host):
    prompt = prompt_with(host, "MMDiffLikeness", image=["decoded", 0], maps=["watch", 1])
    host.run(prompt)
    prompt["tried"] = node("MMDiffLikeness", **prompt["tried"]["inputs"] | {"image": ["two", 0]})
    # the recording is asked for again after the images were drawn
    prompt |= {"two": host.give(batch(RIGHT, RIGHT)), "drawn": node("Sink", value=["decoded", 0])}
    with pytest.raises(Refused, match="generated 1 images, but 2 were given|no attention was"):
        host.run(prompt)
