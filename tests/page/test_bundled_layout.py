"""The bundled graphs as a person meets them: listed by title; note, result and prompt in view;
nothing overlapping, in both of ComfyUI's ways to draw nodes."""

from __future__ import annotations

import json

import pytest

from page.conftest import opened as new_page

from support.page import SETTLED, open_graph, run_and_wait, shot
from support.paths import PACK, PACK_NAME

MOST_WIDE = 2000
WINDOW = {"width": 1600, "height": 1000}
GRAPHS = sorted((PACK / "workflows").glob("*.json"))

# title, type, left, top, right, bottom of every node with its title, in pixels of the window, and
# the same of the canvas; `note` is whether the whole text of a note is shown
LOOK = """() => {
  const scale = app.canvas.ds.scale, [dx, dy] = app.canvas.ds.offset;
  const area = app.canvas.canvas.getBoundingClientRect();
  const nodes = app.graph.nodes.map((n) => {
    const drawn = document.querySelector(`[data-node-id="${n.id}"]`)?.getBoundingClientRect();
    const [left, top] = [area.x + (n.pos[0] + dx) * scale, area.y + (n.pos[1] - 30 + dy) * scale];
    const [width, height] = [n.size[0] * scale, (n.size[1] + 30) * scale];
    const own = { left, top, right: left + width, bottom: top + height };
    const { left: x, top: y, right, bottom } = drawn ?? own;
    return { type: n.type, name: `${n.type} ${n.id}`, box: [x, y, right, bottom] };
  });
  const text = document.querySelector(".comfy-markdown .tiptap")?.parentElement;
  const cut = text ? text.scrollHeight - text.clientHeight : 0;
  const note = app.graph.nodes.find((n) => n.type === "MarkdownNote").size[0];
  return { nodes, scale, cut, note, area: [area.left, area.top, area.right, area.bottom] };
}"""


def opened(page, graph: dict) -> dict:
    """What LOOK sees of a graph that was just opened, without questions about its files."""
    for node in graph["nodes"]:
        node["properties"].pop("models", None)
    open_graph(page, graph)
    seen = page.evaluate(LOOK)
    # the older frontend's experimental Nodes 2.0 enlarges every graph by a fifth when it opens
    (note,) = (n["size"][0] for n in graph["nodes"] if n["type"] == "MarkdownNote")
    enlarged = seen["note"] / note
    x, y, right, bottom = seen["area"]
    seen["area"] = [x, y, x + (right - x) * enlarged, y + (bottom - y) * enlarged]
    return seen | {"enlarged": enlarged}


# titles in the gallery and the number of pictures that have loaded; more come as the page scrolls
LISTED = """(titles) => {
  const gallery = document.querySelector("[role=dialog]");
  const texts = new Set([...gallery.querySelectorAll("*")].map((element) => element.innerText));
  const pictures = [...gallery.querySelectorAll("img")].filter((image) => image.naturalWidth > 1);
  return [titles.filter((title) => texts.has(title)).length, pictures.length];
}"""


def overlapping(nodes: list[dict]) -> list[str]:
    def meet(a, b) -> bool:
        return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

    return [
        f"{a['name']} and {b['name']}"
        for i, a in enumerate(nodes)
        for b in nodes[i + 1 :]
        if meet(a["box"], b["box"])
    ]


def is_in_view(node: dict, area: list[float]) -> bool:
    x, y, right, bottom = node["box"]
    return area[0] <= x and area[1] <= y and right <= area[2] and bottom <= area[3]


@pytest.fixture
def window(loaded):
    """The page with a window of 1600 x 1000."""
    before = loaded.viewport_size
    loaded.set_viewport_size(WINDOW)
    loaded.wait_for_timeout(500)
    yield loaded
    loaded.set_viewport_size(before)


RESULTS = ("SaveImage", "MMDiffSaveSubject")


def faults(seen: dict) -> list[str]:
    """What is wrong with a graph as it was opened."""
    nodes, scale = seen["nodes"], seen["scale"]
    found = overlapping(nodes)
    left, top, right, _ = zip(*(n["box"] for n in nodes), strict=True)
    wide = max(right) - min(left)
    if wide / scale / seen["enlarged"] > MOST_WIDE:
        found.append(f"{wide / scale:.0f} px wide")
    if abs(scale - 1) > 0.01:
        found.append(f"opened at {scale:.2f}")
    (note,) = (n for n in nodes if n["type"] == "MarkdownNote")
    result = next(n for n in nodes if n["type"] in RESULTS)
    found += [f"{n['name']} not in view" for n in (note, result) if not is_in_view(n, seen["area"])]
    if min(top) < note["box"][1] - 2:
        found.append("a node above the note")
    if seen["cut"] > 4:
        found.append(f"{seen['cut']} px of the note are cut off")
    return found


def test_every_bundled_graph_opens_with_note_and_result_in_view_and_nothing_overlapping(window):
    found = {
        path.stem: wrong
        for path in GRAPHS
        if (wrong := faults(opened(window, json.loads(path.read_text(encoding="utf-8")))))
    }
    assert found == {}


def test_a_graph_that_has_run_still_shows_its_result_and_nothing_overlaps(window, page_server):
    path = PACK / "workflows/05 Boxes, small world.json"
    graph = json.loads(path.read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][:3] = [3, "fixed", 3]
    opened(window, graph)
    run_and_wait(window, page_server)
    assert window.evaluate(SETTLED) == 20
    shot(window, "has_run")
    seen = window.evaluate(LOOK)
    result = next(n for n in seen["nodes"] if n["type"] == "SaveImage")
    assert overlapping(seen["nodes"]) == []
    assert is_in_view(result, seen["area"])


def test_the_gallery_lists_bundled_graphs_by_their_titles_with_a_picture(
    chromium, page_server, tmp_path
):
    """On a page of its own: the gallery lies over everything else."""
    titles = [path.stem for path in GRAPHS]
    with new_page(chromium, page_server, "litegraph", tmp_path) as page:
        page.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates'); }")
        page.get_by_role("button", name=PACK_NAME, exact=True).click()
        page.wait_for_function(f"(titles) => ({LISTED})(titles).every((n) => n >= 8)", arg=titles)
        shot(page, "gallery")
        assert page.errors == []
