"""Boxes drawn on ComfyUI's own canvas (Create Bounding Boxes) as the regions of subjects."""

from __future__ import annotations

import pytest
from comfy_extras.nodes_bounding_boxes import CreateBoundingBoxes

from mmdiff_core.regions.boxes import boxes_of_pixels

from support.every_node import prompt_with
from support.graphs import node
from support.in_process import Host, Sink

LEFT = {"x": 0, "y": 0, "width": 256, "height": 512, "metadata": {"desc": "a man"}}
RIGHT = {"x": 256, "y": 128, "width": 256, "height": 384}


def test_the_first_box_on_the_hosts_canvas_is_the_first_subjects():
    drawn = CreateBoundingBoxes.execute(512, 512, editor_state=[LEFT, RIGHT]).args[1]
    found = boxes_of_pixels(drawn, 512, 512, 2)
    assert [(b.subject, b.x, b.y, b.width, b.height) for b in found] == [
        (1, 0.0, 0.0, 0.5, 1.0),
        (2, 0.5, 0.25, 0.5, 0.75),
    ]


@pytest.mark.parametrize("drawn", [[LEFT], []])
def test_a_box_on_the_hosts_canvas_restricts_a_subject_and_none_is_told(
    tmp_path, monkeypatch, drawn
):
    """The types fit too: the host's own checks of a prompt, and its execution."""
    import nodes

    host = Host(tmp_path, monkeypatch)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "CreateBoundingBoxes", CreateBoundingBoxes)
    # a list would be read as a link
    canvas = node("CreateBoundingBoxes", width=512, height=512, editor_state={"__value__": drawn})
    size = {"width": 512, "height": 512, "feather": 0.0}
    prompt = prompt_with(host, "MMDiffConstraintMasks", found_boxes=["canvas", 1], **size)
    (regions,) = (i for i, made in prompt.items() if made["class_type"] == "MMDiffConstraintMasks")
    sink = node("Sink", value=[regions, 2])
    if not drawn:
        with pytest.raises(Exception, match="found_boxes contains no box"):
            host.run(prompt | {"canvas": canvas, "end": sink})
        return
    host.run(prompt | {"canvas": canvas, "end": sink})
    (mask,) = Sink.taken[0]
    half = mask.shape[1] // 2
    assert mask[:, :half].eq(1).all() and mask[:, half:].eq(0).all()
