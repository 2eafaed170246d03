"""The blueprints: found by a person in the page's search, and the same graph as the bundled one."""

from __future__ import annotations

import json

import pytest

from tools.make_blueprints import COUNTS, file_name, texts

from support.page import open_graph

# opened as a person opens one: what a cleared graph leaves on the page can lie under the mouse
EMPTY = {"nodes": [], "links": [], "version": 0.4, "extra": {"ds": {"scale": 1, "offset": [0, 0]}}}
WHAT = """async () => {
  const [node] = app.graph.nodes;
  if (!node) return null;
  const { output } = await app.graphToPrompt();
  return {
    inputs: node.inputs.filter((i) => i.type === "IMAGE").map((i) => i.name),
    widgets: (node.widgets ?? []).map((w) => w.name),
    classes: Object.values(output).map((each) => each.class_type).sort(),
    values: Object.fromEntries(Object.values(output).map((e) => [e.class_type, e.inputs])),
  };
}"""

ONE = pytest.mark.on_every_page
TYPED = "(text) => document.activeElement?.value === text"
ADDED = "() => app.graph.nodes.length === 1"
PATIENCE = 20_000  # ms


def add_from_search(page, name: str) -> None:
    """Add a node from the search that a double click opens; begun again where a page that has just
    opened a graph did not take the click, some of the letters or the choice."""
    from playwright.sync_api import TimeoutError

    for _ in range(4):
        page.mouse.dblclick(900, 500)
        try:
            page.wait_for_function(TYPED, arg="", timeout=PATIENCE)
            page.keyboard.type(name, delay=10)
            page.wait_for_function(TYPED, arg=name, timeout=PATIENCE)
            page.get_by_role("option").filter(has_text=name).first.click(timeout=PATIENCE)
            page.wait_for_function(ADDED, timeout=PATIENCE)
        except TimeoutError:
            page.keyboard.press("Escape")  # the list
            page.keyboard.press("Escape")  # and its dialog
            page.wait_for_timeout(500)
        else:
            return
    raise AssertionError(f"the search adds no {name}")


@pytest.mark.parametrize("count", [pytest.param(COUNTS[0], marks=ONE), *COUNTS[1:]])
def test_a_blueprint_is_found_in_the_search_and_holds_the_whole_graph(loaded, count):
    name = file_name(count)
    open_graph(loaded, EMPTY)
    add_from_search(loaded, name)
    loaded.wait_for_timeout(300)
    found = loaded.evaluate(WHAT)
    loaded.screenshot(path=f"{loaded.shots}_blueprint_{count}.png")
    loaded.keyboard.press("Escape")  # in newer pages the node would go on following the mouse
    assert found["inputs"] == [f"image_{number + 1}" for number in range(count)]
    names = [f"name_{number + 1}" for number in range(count)]
    assert {*names, "text", "fuse_scale", "ckpt_name", "seed"} <= set(found["widgets"])
    assert found["classes"].count("MMDiffSubjectEncoder") == count
    assert {"KSampler", "MMDiffTextEncode", "VAEDecode", "MMDiffLoad"} <= set(found["classes"])


def test_the_blueprints_are_those_that_the_bundled_graph_makes():
    assert texts() == {path: path.read_text(encoding="utf-8") for path in texts()}


def test_the_server_offers_them(page_server):
    offered = page_server.get("/global_subgraphs").values()
    ours = {each["name"] for each in offered if each["info"]["node_pack"].endswith("mm-diff")}
    assert ours == {file_name(count) for count in COUNTS}
    assert all(json.loads(text)["definitions"]["subgraphs"] for text in texts().values())
