"""Each box shows whom it is for."""

from __future__ import annotations

import pytest

from support.page import Editor, run_and_wait, shot
from support.page_graphs import PORTRAIT
from support.page_picker import TWO, draw_faces

# Another photo for Ben, through a Reroute
ANOTHER_PHOTO = """(name) => {
  const load = LiteGraph.createNode("LoadImage");
  load.pos = [-500, 800];
  load.widgets.find((w) => w.name === "image").value = name;
  const dot = LiteGraph.createNode("Reroute");
  for (const node of [load, dot]) app.graph.add(node);
  load.connect(0, dot, 0);
  dot.connect(0, nodes.ben, nodes.ben.inputs.findIndex((i) => i.name === "image"));
}"""
SUBJECTS_OF_BEN = "nodes.ben.inputs.findIndex((i) => i.name === 'subjects')"
LOOK = "(e) => decodeURIComponent(getComputedStyle(e).backgroundImage)"
LIKENESSES = """() => {
  const found = [...document.querySelectorAll('.mmdiff-boxes .likeness')];
  return found.map((e) => decodeURIComponent(e.style.backgroundImage));
}"""
# A loaded subject, with its picture, before the second subject
LOADED = """() => {
  const loaded = LiteGraph.createNode("MMDiffLoadSubject");
  loaded.pos = [-500, 900];
  app.graph.add(loaded);
  const image = { filename: "kept.png", subfolder: "", type: "temp" };
  app.nodeOutputs[loaded.id] = { images: [image] };
  const { inputs } = nodes.subject1;
  loaded.connect(0, nodes.subject1, inputs.findIndex((i) => i.name === "subjects"));
}"""


def addresses_of(editor: Editor) -> list[str]:
    """Where the pictures of the first two boxes come from."""
    return [editor.shown.nth(i).locator(".likeness").evaluate(LOOK) for i in range(2)]


@pytest.mark.on_every_page
def test_each_box_shows_its_subjects_reference_and_after_a_run_what_the_encoder_saw(
    page, page_server
):
    first, second = (
        draw_faces(page_server, "first", TWO[:1]),
        draw_faces(page_server, "second", TWO[1:]),
    )
    page.evaluate(PORTRAIT, [first])
    page.evaluate(ANOTHER_PHOTO, second)
    editor = Editor(page)
    editor.draw_both()
    shown = addresses_of(editor)
    assert f"filename={first}" in shown[0] and f"filename={second}" in shown[1]
    assert all("type=input" in address for address in shown)
    bar = editor.root.locator(".thumb").evaluate(LOOK)
    assert f"filename={second}" in bar, "the bar shows whom the next box is for"
    shot(page, "likeness_before")
    entry = run_and_wait(page, page_server)
    page.wait_for_timeout(500)
    for name, address in zip(("ann", "ben"), addresses_of(editor), strict=True):
        (seen,) = entry["outputs"][str(page.evaluate(f"nodes.{name}.id"))]["images"]
        assert f"filename={seen['filename']}" in address
    shot(page, "likeness")
    before = editor.boxes
    editor.drag((0.25, 0.5), (0.3, 0.5))
    assert editor.boxes[0]["x"] > before[0]["x"], "the picture does not catch the mouse"
    page.evaluate(f"() => nodes.ben.disconnectInput({SUBJECTS_OF_BEN})")
    page.mouse.move(5, 5)
    editor.root.hover()
    addresses = addresses_of(editor)
    assert seen["filename"] in addresses[0], "Ben comes first now"
    assert addresses[1] == "none", "and nobody second"


def test_a_box_without_a_picture_of_its_subject_stays_plain_and_a_loaded_subject_brings_its_own(
    editor, page
):
    editor.draw_both()
    assert page.evaluate(LIKENESSES) == ["", ""], (
        "what a sprite will look like is not known before a run"
    )
    page.evaluate(LOADED)
    page.mouse.move(5, 5)
    editor.root.hover()
    first, second = page.evaluate(LIKENESSES)
    assert "filename=kept.png" in first and "type=temp" in first and second == ""
