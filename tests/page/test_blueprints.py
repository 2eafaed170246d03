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


def search(page, text: str) -> None:
    """Type into the search that a double click opens; a page that has just opened a graph may not
    take the first click, or the first letters."""
    from playwright.sync_api import TimeoutError

    for _ in range(4):
        page.mouse.dblclick(900, 500)
        try:
            page.wait_for_function(TYPED, arg="", timeout=5_000)
            page.keyboard.type(text, delay=10)
            page.wait_for_function(TYPED, arg=text, timeout=5_000)
        except TimeoutError:
            page.keyboard.press("Escape")
        else:
            return
    raise AssertionError("no search opens")


@pytest.mark.parametrize("count", [pytest.param(COUNTS[0], marks=ONE), *COUNTS[1:]])
def test_a_blueprint_is_found_in_the_search_and_holds_the_whole_graph(loaded, count):
    name = file_name(count)
    open_graph(loaded, EMPTY)
    search(loaded, name)
    loaded.get_by_role("option").filter(has_text=name).first.wait_for()
    loaded.keyboard.press("Enter")
    loaded.wait_for_function("() => app.graph.nodes.length === 1")
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
