"""Looking at attention while sampling: recordings tell the truth and cost nothing when off.

Found regions keep subjects apart.
"""

from __future__ import annotations

import pytest
import torch

from mmdiff_core.bases import SD15, SDXL, SMALL_WORLD
from mmdiff_core.host.layer_attention import Columns, watched_slots
from mmdiff_core.host.live import live_view
from mmdiff_core.host.watch import Recorder, WatchPlan, parts_of, watch

from support.scene import SIGMAS
from support.watching import NOUNS, prompt, record

LIKE = "sd15"  # fewer layers than SDXL, so more graphs


class Looks:
    """Counts the layers at which somebody looked."""

    def __init__(self, monkeypatch):
        self.count, found = 0, Columns.maps

        def counted(columns, look):
            self.count += 1
            return found(columns, look)

        monkeypatch.setattr(Columns, "maps", counted)


# ---------------------------------------------------------------- recordings


def test_watching_changes_no_picture(scene, model):
    recorder = Recorder(WatchPlan())
    assert torch.equal(
        scene.sample(watch(model, recorder), prompt(scene)), scene.sample(model, prompt(scene))
    )
    assert [m.names for m in recorder.maps] == [("ann", "bob")]


def test_token_maps_sum_to_one_and_noun_maps_stay_below(scene, model):
    (maps,) = record(scene, model, prompt(scene)).maps
    assert maps.text.shape == maps.image.shape == (4, 1, 2, 8, 8)
    assert torch.allclose(maps.image.sum(2), torch.ones(4, 1, 8, 8), atol=1e-4)
    assert (maps.text > 0).all() and (maps.text.sum(2) < 1).all()


def test_a_recorded_noun_map_is_the_softmax_of_that_layer(scene, model):
    seen = []

    def spy(out, q, k, v, extra_options, **kwargs):
        if extra_options["cond_or_uncond"] == [0]:
            seen.append(
                (q, k, extra_options["n_heads"], tuple(extra_options["activations_shape"][-2:]))
            )
        return torch.zeros_like(out)

    spied = model.clone()
    slots = spied.model_options["transformer_options"]["patches_replace"]["attn2"]
    next(p for s, p in slots.items() if s[:2] == ("middle", 0)).add(spy)
    (maps,) = record(
        scene,
        spied,
        prompt(scene),
        WatchPlan(strip=1, layers="middle"),
        cfg=1.0,
        sigmas=SIGMAS[[0, 4]],
    ).maps
    ((q, k, heads, grid),) = seen
    by_head = [x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (q, k)]
    softmax = (
        (by_head[0] @ by_head[1].transpose(-1, -2) * by_head[0].shape[-1] ** -0.5)
        .softmax(-1)
        .mean(1)
    )
    expected = torch.stack([softmax[..., [3]].sum(-1), softmax[..., [7, 9]].sum(-1)], 1).unflatten(
        -1, grid
    )
    assert torch.allclose(
        maps.text[0],
        torch.nn.functional.interpolate(expected, size=(8, 8), mode="bilinear"),
        atol=1e-5,
    )


def test_layers_and_steps_that_are_not_watched_are_not_looked_at(scene, model, monkeypatch):
    looks = Looks(monkeypatch)
    scene.sample(model, prompt(scene))
    assert looks.count == 0
    record(scene, model, prompt(scene), WatchPlan(layers="middle"))
    assert looks.count == 4
    record(scene, model, prompt(scene), WatchPlan(layers="middle", end=0.5))
    assert 4 < looks.count < 8


def test_every_picture_of_a_batch_has_its_own_maps(scene, model):
    maps = record(scene, model, prompt(scene), WatchPlan(strip=2), batch=2).maps[0]
    assert maps.text.shape[:2] == (2, 2) and torch.allclose(
        maps.text[:, 0], maps.text[:, 1], atol=1e-5
    )


def test_a_recorder_holds_the_newest_run_and_the_model_keeps_nothing(scene, model):
    recorder = Recorder(WatchPlan(strip=1))
    watched = watch(model, recorder)
    scene.sample(watched, prompt(scene))
    first = recorder.maps
    scene.sample(watched, prompt(scene, scene.subjects[:1], NOUNS[:1]))
    assert first[0].names == ("ann", "bob") and recorder.maps[0].names == ("ann",)
    scene.sample(watched, scene.plain)
    assert recorder.maps == []
    assert "mmdiff-watch" not in watched.model_options["transformer_options"]


def test_a_model_that_is_watched_already_is_refused(model):
    with pytest.raises(ValueError, match="already watched"):
        watch(watch(model, Recorder(WatchPlan())), Recorder(WatchPlan()))


def test_a_prompt_that_was_bound_without_its_nouns_is_not_recorded(scene, model):
    assert record(scene, model, scene.bound()).maps == []


# ---------------------------------------------------------------- while it runs


def test_live_maps_are_sent_throttled_and_after_the_last_step(scene, model):
    sent, now = [], iter([0.0, 0.0, 0.1, 0.7, 0.7, 0.8, 0.8])
    view = live_view("7", lambda event, data: sent.append((event, data)), lambda: next(now))
    scene.sample(watch(model, Recorder(WatchPlan(layers="middle"), view)), prompt(scene))
    told = [
        (event, data["node"], data["step"], data["steps"], data["names"]) for event, data in sent
    ]
    assert told == [("mmdiff.maps", "7", step, 4, ["ann", "bob"]) for step in (1, 3, 4)]
    assert all(data["image"].startswith("data:image/png;base64,") for _, data in sent)


def test_an_exception_while_sampling_leaves_nothing_behind_and_keeps_what_was_seen(scene, model):
    recorder = Recorder(
        WatchPlan(layers="middle"), lambda recording, step, steps: 1 / 0 if step == 2 else None
    )
    watched = watch(model, recorder)
    with pytest.raises(ZeroDivisionError):
        scene.sample(watched, prompt(scene))
    assert (
        recorder.maps[0].names == ("ann", "bob")
        and "mmdiff-watch" not in watched.model_options["transformer_options"]
    )


# ---------------------------------------------------------------- which part it is


def test_the_parts_of_a_recording_share_the_sigmas_of_the_schedule_between_start_and_end(scene):
    sampling = scene.model.get_model_object("model_sampling")
    levels = [float(sampling.percent_to_sigma(p)) for p in (0.0, 0.25, 0.5, 0.75)]

    def parts(**plan) -> list[list[int]]:
        """Numbers of the levels that each part holds."""
        found = []
        for window in parts_of(WatchPlan(**plan), torch.tensor([*levels, 0.0]), sampling):
            inside = [window.factor(torch.tensor([level])) for level in levels]
            found.append([i for i, factor in enumerate(inside) if factor])
        return found

    assert parts(strip=6) == [[0], [1], [2], [3]]
    assert parts(strip=2) == [[0, 1], [2, 3]] and parts(strip=3) == [[0, 1], [2], [3]]
    assert parts(strip=1, start=0.2) == [[1, 2, 3]] and parts(strip=1, start=0.25) == [[1, 2, 3]]
    assert parts(strip=2, start=0.2, end=0.5) == [[1]] and parts(strip=1, end=0.6) == [[0, 1, 2]]
    assert parts(strip=1, start=1.0) == []


def test_at_most_twelve_layers_are_watched_unless_named():
    assert [len(watched_slots(base.blocks)) for base in (SDXL, SD15, SMALL_WORLD)] == [12, 8, 5]
