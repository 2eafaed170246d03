"""The widget holds the truth: boxes are saved, copied, undone and sent."""

from __future__ import annotations

import json
import time

import pytest

from support.page import Editor, open_without_a_graph, run_and_wait, shot
from support.page_graphs import FIND


@pytest.mark.on_every_page
def test_boxes_are_in_the_saved_graph_and_come_back_from_it(editor, page):
    editor.draw_both()
    drawn = editor.boxes
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    (node,) = (n for n in json.loads(saved)["nodes"] if n["type"] == "MMDiffConstraintMasks")
    assert json.loads(node["widgets_values"][1]) == drawn and len(node["widgets_values"]) == 11
    page.evaluate("() => app.graph.clear()")
    page.evaluate("(saved) => app.loadGraphData(JSON.parse(saved))", saved)
    again = Editor(page)
    again.shown.nth(1).wait_for()
    assert again.boxes == drawn and again.shown.locator(".label").all_inner_texts() == [
        "1 Violet",
        "2 Teal",
    ]


def test_boxes_are_copied_with_their_node(editor, page):
    editor.draw_both()
    page.evaluate("""() => {
      app.canvas.selectItems([nodes.masks]);
      app.canvas.copyToClipboard();
      app.canvas.pasteFromClipboard();
    }""")
    page.wait_for_function("document.querySelectorAll('.mmdiff-boxes').length === 2")
    found = page.evaluate("""() => {
      const both = app.graph.nodes.filter((n) => n.comfyClass === 'MMDiffConstraintMasks');
      return both.map((n) => n.widgets.find((w) => w.name === 'boxes').value);
    }""")
    assert len(found) == 2 and found[0] == found[1]
    assert page.locator(".mmdiff-boxes").nth(1).locator(".box").count() == 2


def test_boxes_and_names_come_along_into_a_subgraph_and_out_of_one(editor, page, page_server):
    editor.draw_both()
    boxes = editor.boxes
    told = "() => [...document.querySelectorAll('.mmdiff-boxes .label')].map((e) => e.textContent)"
    page.evaluate(
        "() => { app.graph.convertToSubgraph(new Set([nodes.subject0, nodes.subject1])); }"
    )
    page.mouse.move(5, 5)
    editor.root.hover()
    page.wait_for_timeout(200)
    assert page.evaluate(told) == ["1 Violet", "2 Teal"], (
        "the subjects are inside a subgraph, the boxes outside"
    )
    inner = page.evaluate("""async () => {
      const { subgraph } = app.graph.convertToSubgraph(new Set([nodes.masks, nodes.text]));
      app.canvas.setGraph(subgraph);
      app.canvas.ds.offset = [200 - subgraph.nodes[0].pos[0], 130 - subgraph.nodes[0].pos[1]];
      await new Promise((then) => setTimeout(then, 800));
      const masks = subgraph.nodes.find((n) => n.comfyClass === "MMDiffConstraintMasks");
      return masks.widgets.find((w) => w.name === "boxes").value;
    }""")
    assert json.loads(inner) == boxes
    page.mouse.move(5, 5)
    page.locator(".mmdiff-boxes:visible").last.hover()
    page.wait_for_timeout(200)
    assert page.evaluate(told)[-2:] == ["1 Violet", "2 Teal"], (
        "boxes in one subgraph, subjects in another"
    )
    shot(page, "inside_a_subgraph")
    page.evaluate("() => app.canvas.setGraph(app.graph.rootGraph ?? app.graph)")
    (sent,) = (
        n["inputs"]["boxes"]
        for n in page.evaluate("async () => (await app.graphToPrompt()).output").values()
        if n["class_type"] == "MMDiffConstraintMasks"
    )
    assert json.loads(sent) == boxes
    open_without_a_graph(page, page_server)


# How many boxes are saved, shown, and in each state to go back or on to
HISTORY = """() => {
  const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
  const { activeState, undoQueue, redoQueue } = tracker;
  const count = (graph) => {
    const masks = graph.nodes.find((n) => n.type === "MMDiffConstraintMasks");
    return JSON.parse(masks?.widgets_values[1] ?? "[]").length;
  };
  const shown = document.querySelectorAll(".mmdiff-boxes .box").length;
  const [back, on] = [undoQueue, redoQueue].map((queue) => queue.map(count));
  return { saved: count(activeState), shown, back, on };
}"""


@pytest.mark.on_every_page
def test_every_finished_change_can_be_undone_and_done_again(page):
    page.evaluate("""async () => {
      // as a graph is that was loaded: one that a script built is arranged by the page's first undo
      const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
      await app.loadGraphData(saved, true, false, app.extensionManager.workflow.activeWorkflow);
    }""")
    page.wait_for_timeout(500)
    page.evaluate("""() => {
      const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
      (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
    }""")
    editor = Editor(page)
    editor.draw_both()
    two = editor.boxes

    def wait(count: int) -> dict:
        end = time.monotonic() + 10
        while (
            (found := page.evaluate(HISTORY))
            and (found["saved"], found["shown"]) != (count, count)
            and time.monotonic() < end
        ):
            page.wait_for_timeout(50)
        return found

    assert wait(2)["shown"] == 2
    for keys, count in (("Control+z", 1), ("Control+z", 0), ("Control+y", 1), ("Control+y", 2)):
        page.wait_for_timeout(200)  # keys are handled with the next frame
        page.keyboard.press(keys)
        found = wait(count)
        assert found["saved"] == found["shown"] == count, (keys, found)
    again = Editor(page)
    assert again.boxes == two
    again.shown.nth(0).locator(".remove").click()
    assert again.boxes == two[1:], "what is shown is the new node's editor"


def test_a_graph_saved_before_there_were_boxes_opens_with_none(editor, page):
    saved = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    (node,) = (n for n in saved["nodes"] if n["type"] == "MMDiffConstraintMasks")
    node["widgets_values"], node["size"], node["outputs"] = [8], [270, 180], node["outputs"][:1]
    page.evaluate("(saved) => app.loadGraphData(JSON.parse(saved))", json.dumps(saved))
    old = Editor(page)
    assert old.boxes == [] and old.stage.bounding_box()["width"] > 150
    page.wait_for_timeout(200)
    room = page.evaluate(
        f"[{FIND}('MMDiffConstraintMasks')].map((n) => n.size[1] - n.computeSize()[1])[0]"
    )
    assert room >= 0, "the node has room for it"
    inputs = page.evaluate("async () => (await app.graphToPrompt()).output")
    (sent,) = (n["inputs"] for n in inputs.values() if n["class_type"] == "MMDiffConstraintMasks")
    assert (
        sent["feather"] == 8
        and sent["width"] == 1024
        and sent["free_subjects"] == "everywhere"
        and sent["boxes"] == "[]"
    )


@pytest.mark.on_every_page
def test_the_drawn_boxes_reach_the_server_and_the_node_shows_the_regions(editor, page, page_server):
    editor.draw_both()
    # not cached
    page.evaluate(
        "(feather) => { nodes.masks.widgets.find((w) => w.name === 'feather').value = feather; }",
        time.time() % 4,
    )
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    (masks,) = (n["inputs"] for n in sent.values() if n["class_type"] == "MMDiffConstraintMasks")
    assert json.loads(masks["boxes"]) == editor.boxes and "box_editor" not in masks
    entry = run_and_wait(page, page_server)
    made = {sent[node]["class_type"]: out for node, out in entry["outputs"].items()}
    assert made["PreviewImage"]["images"] and made["MMDiffConstraintMasks"]["images"]
    name = made["MMDiffConstraintMasks"]["images"][0]["filename"]
    page.wait_for_function(
        f"(name) => {FIND}('MMDiffConstraintMasks').imgs?.[0]?.src.includes(name) || "
        "[...document.querySelectorAll('[data-node-id] img')].some((i) => i.src.includes(name))",
        arg=name,
    )
    page.wait_for_timeout(300)
    shot(page, "after_a_run")
    assert editor.shown.count() == 2 and editor.stage.bounding_box()["width"] > 150
    words = page.locator(".mmdiff-text b")
    assert (
        words.count() == 2
        and len({words.nth(i).evaluate("(word) => word.style.color") for i in range(2)}) == 2
    )
