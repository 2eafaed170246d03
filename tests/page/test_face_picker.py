"""The face picker of MM-Diff Subject Encoder."""

from __future__ import annotations

import pytest

from support.page import shot
from support.page_picker import FACE, THREE, TWO, Picker, draw_faces


def test_the_faces_that_were_found_lie_on_the_picture_after_a_run(page, page_server):
    picker = Picker(page, page_server, draw_faces(page_server, "two", TWO))
    assert page.locator(".mmdiff-faces:visible").count() == 0, "nothing to pick before a run"
    assert picker.run()["faces"][0]["used"] == 2
    picker.faces.nth(1).wait_for()
    assert picker.faces.all_inner_texts() == ["1", "2"] and picker.marked("used") == picker.marked(
        "next"
    ) == ["2"]
    assert (
        picker.says.inner_text() == "face 2 is used"
        and picker.largest.get_attribute("aria-pressed") == "true"
    )
    stage = picker.root.locator(".stage").bounding_box()
    assert (
        stage["width"] / stage["height"] == pytest.approx(900 / 600, rel=0.02)
        and stage["width"] > 150
    )
    left = picker.faces.nth(0).bounding_box()
    assert (left["x"] + left["width"] / 2 - stage["x"]) / stage["width"] == pytest.approx(
        TWO[0][0] / 900, abs=0.03
    )
    shot(page, "faces")


@pytest.mark.on_every_page
def test_a_click_on_a_face_makes_the_next_run_use_it_and_undo_takes_it_back(page, page_server):
    picker = Picker(page, page_server, draw_faces(page_server, "two", TWO))
    picker.run()
    picker.faces.nth(1).wait_for()
    where, left = page.evaluate("[...nodes.ann.pos]"), picker.faces.nth(0).bounding_box()
    page.mouse.click(left["x"] + left["width"] / 2, left["y"] + left["height"] / 2)
    assert picker.number == 1 and picker.says.inner_text() == "next run: face 1"
    assert picker.faces.nth(0).get_attribute("aria-pressed") == "true"
    assert picker.marked("used") == ["2"] and picker.marked("next") == ["1"]
    assert page.evaluate("[...nodes.ann.pos]") == where, "the node stays where it is"
    shot(page, "faces_picked")
    page.keyboard.press("Control+z")
    page.wait_for_function(f"{FACE}.value === 0")
    page.wait_for_timeout(500)
    assert picker.faces.count() == 2 and picker.marked("next") == ["2"], (
        "the picker is still there and follows"
    )
    picker.faces.nth(0).click()
    assert picker.number == 1, "what is shown is the new node's picker"
    assert picker.run()["faces"][0]["used"] == 1
    assert (
        picker.marked("used") == picker.marked("next") == ["1"]
        and picker.says.inner_text() == "face 1 is used"
    )
    picker.largest.click()
    assert picker.number == 0 and picker.marked("next") == ["2"]


def test_faces_are_picked_with_the_keyboard(page, page_server):
    picker = Picker(page, page_server, draw_faces(page_server, "three", THREE))
    picker.run()
    picker.largest.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert picker.number == 1 and picker.faces.nth(0).get_attribute("aria-label") == "Face 1 of 3"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert picker.number == 3 and [f.get_attribute("aria-pressed") for f in picker.faces.all()] == [
        "false",
        "false",
        "true",
    ]
    assert picker.faces.nth(1).get_attribute("aria-label") == "Face 2 of 3, used in the last run"


def test_the_widget_changed_by_hand_shows_on_the_picture(page, page_server):
    picker = Picker(page, page_server, draw_faces(page_server, "three", THREE))
    picker.run()
    page.evaluate(f"() => {{ const face = {FACE}; face.value = 3; face.callback(3); }}")
    assert picker.marked("next") == ["3"]
    page.evaluate(f"() => {{ const face = {FACE}; face.value = 9; face.callback(9); }}")
    assert picker.marked("next") == []
    assert picker.says.inner_text() == "there is no face 9 in this image"


def test_one_face_takes_no_room_and_a_second_picture_is_turned_to(page, page_server):
    picker = Picker(page, page_server, draw_faces(page_server, "one", TWO[1:]))
    picker.run()
    assert page.locator(".mmdiff-faces:visible").count() == 0
    picker = Picker(
        page,
        page_server,
        draw_faces(page_server, "two", TWO),
        draw_faces(page_server, "one", TWO[:1]),
        draw_faces(page_server, "three", THREE),
    )
    picker.run()
    assert picker.faces.count() == 2 and "1 of 3" in picker.root.locator(".turn").inner_text()
    picker.faces.nth(1).click(force=True)  # past the check that it is enabled
    assert picker.number == 0 and "image 2 has only 1 face" in picker.says.inner_text()
    shot(page, "faces_not_on_every_picture")
    picker.root.get_by_role("button", name="Next image").click()
    assert (
        picker.faces.count() == 3
        and "3 of 3" in picker.root.locator(".turn").inner_text()
        and picker.marked("used") == ["2"]
    )
    shot(page, "faces_of_three_pictures")
    picker.faces.nth(0).click()
    assert picker.number == 1


def test_a_face_number_from_another_node_is_left_alone(page, page_server):
    picker = Picker(page, page_server, draw_faces(page_server, "two", TWO))
    picker.run()
    page.evaluate("""() => {
      const number = LiteGraph.createNode("PrimitiveInt");
      number.pos = [-300, 700];
      app.graph.add(number);
      nodes.ann.widgets.find((w) => w.name === "face").value = 0;
      number.connect(0, nodes.ann, nodes.ann.inputs.findIndex((i) => i.name === "face"));
    }""")
    assert picker.says.inner_text() == "face is connected; choose it there"
    picker.faces.nth(0).click(force=True)  # past the check that it is enabled
    assert picker.number == 0 and {
        f.get_attribute("aria-disabled") for f in picker.faces.all()
    } == {"true"}


def test_the_picker_is_there_again_after_another_tab(page, page_server):
    picker = Picker(page, page_server, draw_faces(page_server, "two", TWO))
    picker.run()
    key = page.evaluate("app.extensionManager.workflow.activeWorkflow.filename")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function(
        "(key) => app.extensionManager.workflow.activeWorkflow.filename !== key", arg=key
    )
    page.wait_for_timeout(300)
    assert page.locator(".mmdiff-faces:visible").count() == 0
    page.locator(".workflow-tabs").get_by_text(key, exact=True).click()
    picker.faces.nth(1).wait_for()
    page.wait_for_timeout(300)
    picker.faces.nth(0).click()
    assert picker.number == 1 and picker.marked("used") == ["2"]
