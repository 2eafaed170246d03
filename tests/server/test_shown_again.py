"""What a node had shown can be had again of a run that the server answers from its cache."""

from __future__ import annotations

import time
import urllib.error

import pytest

from support.graphs import node
from support.server import Server


def a_subject() -> dict:
    """A graph that encodes a subject, new to the server each time."""
    return {
        "world": node("MMDiffSmallWorldLoader"),
        "sprite": node(
            "MMDiffSmallWorldSprite",
            kind="ghost",
            first_colour=0.7,
            second_colour=0.2,
            pattern="stripes",
            eyes="dark",
            accessory="crown",
            references=1,
            seed=0,
        ),
        "subject": node(
            "MMDiffSubjectEncoder",
            mmdiff=["world", 4],
            clip_vision=["world", 3],
            image=["sprite", 0],
            name=f"ghost {time.time_ns()}",
            weight=1.0,
            face=0,
        ),
        "preview": node("PreviewImage", images=["subject", 1]),
    }


def test_a_run_from_the_cache_tells_what_its_nodes_had_shown(server: Server):
    """By the host itself where it can, else by the pack's route."""
    prompt = a_subject()
    first = server.run(prompt)["outputs"]["subject"]
    assert first["images"]
    asked = server.queue(prompt)
    entry = server.wait(asked)
    (told,) = (m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached")
    assert "subject" in told
    info = server.get("/object_info/MMDiffSubjectEncoder")["MMDiffSubjectEncoder"]
    if "has_intermediate_output" in info:
        assert info["has_intermediate_output"] and entry["outputs"]["subject"] == first
        return
    answer = server.get(f"/mmdiff/shown/{asked}?node=subject&node=preview&node=nobody")
    assert answer == {"workflow": None, "shown": {"subject": first}}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/mmdiff/shown/nobody?node=subject")
