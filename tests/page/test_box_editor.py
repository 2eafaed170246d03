"""The box editor of MM-Diff Multi-Subject Constraint Masks: drawing with mouse and keyboard."""

from __future__ import annotations

import pytest

from mmdiff_core.regions.preview import COLOURS

from support.page import SIZE, Editor, change_settings, close_to, open_page, shot
from support.page_graphs import BUILD

# A box of a third subject
THIRD_BOX = """() => {
  const widget = nodes.masks.widgets.find((w) => w.name === "boxes");
  const box = { subject: 3, x: 0.45, y: 0.85, width: 0.5, height: 0.1 };
  widget.value = JSON.stringify([...JSON.parse(widget.value), box]);
  widget.callback(widget.value);
}"""
UNLINK = """(name) => {
  const node = nodes[name];
  node.disconnectInput(node.inputs.findIndex((i) => i.name === "subjects"));
}"""
LINK_AGAIN = """() => {
  const into = nodes.subject1.inputs.findIndex((i) => i.name === "subjects");
  nodes.subject0.connect(0, nodes.subject1, into);
}"""

# ---------------------------------------------------------------- drawing


@pytest.mark.on_every_page
def test_boxes_are_drawn_moved_resized_and_deleted_with_the_mouse(editor, page):
    where = page.evaluate("[...nodes.masks.pos]")
    editor.draw_both()
    first, second = editor.boxes
    assert close_to(first, 1, 0.1, 0.1, 0.3, 0.8) and close_to(second, 2, 0.6, 0.2, 0.3, 0.6)
    editor.drag((0.75, 0.6), (0.65, 0.7))
    assert close_to(editor.boxes[1], 2, 0.5, 0.3, 0.3, 0.6) and editor.boxes[0] == first
    # its lower right handle, out of the picture
    editor.drag((0.8, 0.9), (0.95, 1.2))
    assert close_to(editor.boxes[1], 2, 0.5, 0.3, 0.45, 0.7)
    # moved as far as there is room
    editor.drag((0.72, 0.6), (2.0, -2.0))
    assert close_to(editor.boxes[1], 2, 0.55, 0.0, 0.45, 0.7)
    shot(page, "boxes")
    editor.shown.nth(0).locator(".remove").click()
    assert len(editor.boxes) == editor.shown.count() == 1 and editor.boxes[0]["subject"] == 2
    editor.drag((0.1, 0.5), (0.105, 0.505))  # a click is no box
    assert len(editor.boxes) == 1
    assert page.evaluate("[...nodes.masks.pos]") == where, "the node stays where it is"


def test_each_box_says_whose_it_is_in_its_subjects_colour(editor, page):
    editor.draw_both()
    page.evaluate(THIRD_BOX)  # of a subject that was there once
    assert editor.shown.locator(".label").all_inner_texts() == [
        "1 Violet",
        "2 Teal",
        "3 no such subject",
    ]
    for i, colour in enumerate(COLOURS[:3]):
        red, green, blue = bytes.fromhex(colour[1:])
        assert (
            editor.shown.nth(i).evaluate("(e) => getComputedStyle(e).borderTopColor")
            == f"rgb({red}, {green}, {blue})"
        )


def test_no_box_is_drawn_for_a_subject_that_is_not_there_and_the_editor_says_why(editor, page):
    why = editor.root.locator(".why")
    editor.draw_both()
    drawn = editor.boxes
    third = editor.root.locator(".bar button").nth(2)
    assert third.get_attribute("aria-disabled") == "true"
    third.click(force=True)  # past the check that it is enabled
    told = "There is no subject 3; connected: 1 Violet, 2 Teal. Chain another MM-Diff Subject"
    assert why.inner_text().startswith(told)
    shot(page, "no_such_subject")
    editor.drag((0.45, 0.2), (0.55, 0.8))  # for the one that was chosen before
    assert editor.boxes[:2] == drawn and editor.boxes[2]["subject"] == 2
    assert why.inner_text() == ""
    page.keyboard.press("5")
    assert why.inner_text().startswith("There is no subject 5;")
    assert editor.boxes[2]["subject"] == 2, "nor is a box given to one"
    page.keyboard.press("Delete")
    page.evaluate(UNLINK, "subject1")
    editor.drag((0.45, 0.1), (0.55, 0.9))
    assert editor.boxes == drawn and why.inner_text().startswith("There is no subject 2;")
    page.evaluate(LINK_AGAIN)
    editor.choose(1)
    assert why.inner_text() == ""
    third.click(force=True)
    assert why.inner_text() != ""


def test_without_a_subject_the_editor_says_what_to_connect_instead_of_letting_draw(editor, page):
    page.evaluate(UNLINK, "masks")
    told = (
        "No subject is connected. Connect MM-Diff Subject Encoder to subjects, then draw its box."
    )
    assert editor.root.locator(".hint").inner_text() == told
    shot(page, "no_subject")
    editor.drag((0.1, 0.1), (0.4, 0.9))
    editor.stage.focus()
    page.keyboard.press("Enter")
    assert editor.boxes == [] and editor.root.locator(".why").inner_text() == told


def test_boxes_can_be_drawn_where_another_packs_node_brings_the_subjects(editor, page):
    page.evaluate("""() => {
      const other = LiteGraph.createNode("MMDiffSubjectWeights");
      other.comfyClass = "AnotherPacksSubjects";
      app.graph.add(other);
      other.connect(0, nodes.masks, nodes.masks.inputs.findIndex((i) => i.name === "subjects"));
    }""")
    page.mouse.move(5, 5)
    editor.root.hover()
    editor.choose(4)
    editor.drag((0.1, 0.1), (0.4, 0.9))
    assert [box["subject"] for box in editor.boxes] == [4]


def test_the_drawing_has_the_pictures_shape(editor, page):
    area = editor.stage.bounding_box()
    assert (
        area["width"] / area["height"] == pytest.approx(128 / 96, rel=0.02) and area["width"] > 150
    )
    page.evaluate("""() => {
      const width = nodes.masks.widgets.find((w) => w.name === "width");
      width.value = 64;
      width.callback(64);
    }""")
    area = editor.stage.bounding_box()
    assert area["width"] / area["height"] == pytest.approx(64 / 96, rel=0.02)


def test_the_drawing_has_the_shape_of_a_connected_latent_and_without_one_of_the_typed_size(
    editor, page
):
    page.evaluate("""() => {
      const { inputs } = nodes.masks;
      nodes.latent.connect(0, nodes.masks, inputs.findIndex((i) => i.name === "latent"));
      nodes.latent.widgets.find((w) => w.name === "width").value = 256;
    }""")
    page.mouse.move(5, 5)
    editor.root.hover()
    page.wait_for_timeout(200)
    area = editor.stage.bounding_box()
    assert area["width"] / area["height"] == pytest.approx(256 / 128, rel=0.05)
    page.evaluate("""() => {
      const { inputs } = nodes.masks;
      nodes.masks.disconnectInput(inputs.findIndex((i) => i.name === "latent"));
    }""")
    page.wait_for_timeout(200)
    area = editor.stage.bounding_box()
    assert area["width"] / area["height"] == pytest.approx(128 / 96, rel=0.05)


@pytest.mark.on_every_page
def test_the_keyboard_does_all_the_mouse_does(editor, page):
    keys = page.keyboard
    editor.stage.focus()
    keys.press("2")
    keys.press("Enter")
    assert close_to(editor.boxes[0], 2, 0.3, 0.3, 0.4, 0.4)
    keys.press("ArrowLeft")
    keys.press("ArrowDown")
    keys.press("Shift+ArrowRight")
    assert [editor.boxes[0][k] for k in ("x", "y", "width", "height")] == [0.29, 0.31, 0.41, 0.4]
    keys.press("Escape")
    keys.press("1")
    keys.press("Enter")
    keys.press("Shift+Tab")
    keys.press("1")
    assert [box["subject"] for box in editor.boxes] == [1, 1]
    keys.press("2")
    keys.press("Tab")
    keys.press("Delete")
    assert [box["subject"] for box in editor.boxes] == [2]
    assert page.evaluate("app.graph.nodes.length") == 12, "Delete removed the box, not the node"


# ---------------------------------------------------------------- graphs that nobody meant

CIRCLE = """() => {
  const add = () => {
    const node = LiteGraph.createNode("Reroute");
    app.graph.add(node);
    return node;
  };
  const [one, two] = [add(), add()];
  one.connect(0, two, 0);
  const { inputs } = nodes.masks;
  for (const [name, from] of [["subjects", one], ["latent", two]]) {
    from.connect(0, nodes.masks, inputs.findIndex((i) => i.name === name));
  }
  // a script or a damaged file makes the circle that the mouse may not
  const link = two.outputs[0].links ?? [];
  two.connect(0, one, 0);
  return [one.inputs[0].link, link.length];
}"""


def test_a_circle_of_reroutes_is_no_subject_and_no_error(editor, page):
    page.evaluate(CIRCLE)
    page.mouse.move(5, 5)
    editor.root.hover()
    editor.drag((0.1, 0.1), (0.4, 0.9))
    assert editor.shown.locator(".label").all_inner_texts() == ["1"]


TOO_MANY = """(count) => {
  const box = { subject: 1, x: 0.1, y: 0.1, width: 0.5, height: 0.5 };
  const widget = nodes.masks.widgets.find((w) => w.name === "boxes");
  widget.value = JSON.stringify(Array(count).fill(box));
  const start = performance.now();
  widget.callback(widget.value);
  return performance.now() - start;
}"""


def test_more_boxes_than_a_node_can_have_are_counted_and_not_drawn(editor, page):
    assert page.evaluate(TOO_MANY, 5000) < 500
    assert editor.shown.count() == 0
    assert "5000 boxes are too many, at most 100" in editor.root.locator(".hint").inner_text()
    page.evaluate(TOO_MANY, 100)
    assert editor.shown.count() == 100
    editor.stage.focus()
    page.keyboard.press("Enter")
    assert len(editor.boxes) == 100, "one more box than there may be"
    page.evaluate(TOO_MANY, 99)
    editor.stage.focus()
    page.keyboard.press("Enter")
    assert len(editor.boxes) == 100


# ---------------------------------------------------------------- the page's language


def test_the_box_editor_speaks_the_language_that_comfyui_is_set_to(chromium, page_server):
    change_settings(page_server, {"Comfy.Locale": "zh"})
    page = chromium.new_page(viewport=SIZE)
    try:
        open_page(page, page_server)
        page.evaluate(BUILD)
        editor = Editor(page)
        assert editor.root.locator(".hint").inner_text() == "拖动鼠标画方框"
        assert "Shift+方向键" in editor.stage.get_attribute("title")
        assert editor.root.locator(".bar button").nth(1).get_attribute("title") == "主体 2：Teal"
    finally:
        page.close()
        change_settings(page_server, {"Comfy.Locale": "en"})
