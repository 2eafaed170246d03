"""Heights of a graph's nodes in a page of ComfyUI, and the graph as a person sees it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .layout import NOTE, WINDOW, Column, Height, lay_out, names
from .table import GROWS, ROOM
from support.page import FLAGS, browser, change_settings, open_page

RENDERERS = {"classic": False, "nodes 2.0": True}  # name -> Comfy.VueNodes.Enabled
SETTLES = 15
LARGER = 1.15
# beyond the height that the newest Nodes 2.0 gives a note: in the older frontend's it grows
ROOM_OF_NOTE = 1.28, 40
LEAST = 10  # a height that no node can have: the page gives it the least that it needs

# id, width and height without the title, in the units of the page's graph
LOOK = """() => app.graph.nodes.map((node) => {
  const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
  const scale = app.canvas.ds.scale;
  const [width, height] = drawn ? [drawn.width / scale, drawn.height / scale - 30] : node.size;
  return [Number(node.id), width, height];
})"""
LOAD = "async (graph) => { await app.loadGraphData(graph); }"
VIEW = """([scale, offset]) => {
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = offset;
  app.canvas.setDirty(true, true);
}"""


@contextmanager
def opened(playwright, server, renderer: str) -> Iterator:
    """A page of the server that draws nodes in this way, as large as WINDOW."""
    change_settings(server, {"Comfy.VueNodes.Enabled": RENDERERS[renderer]})
    started = playwright.chromium.launch(executable_path=browser(), args=list(FLAGS))
    width, height = WINDOW
    page = started.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    try:
        open_page(page, server)
        yield page
    finally:
        started.close()


def without_models(graph: dict) -> dict:
    """A copy that the page opens without asking about missing files."""
    graph = copy.deepcopy(graph)
    for node in graph["nodes"]:
        node["properties"].pop("models", None)
    return graph


def least_heights(page, graph: dict, columns: tuple[Column, ...]) -> dict[str, int]:
    """What each node needs at the width of its column, by its name in the table."""
    tried = without_models(graph)
    lay_out(tried, columns, {name: Height(LEAST, 400) for name in names(tried)})
    page.evaluate(LOAD, tried)
    page.evaluate(VIEW, [0.55, [150, 250]])  # smaller ones are drawn without their text
    widths = {node["id"]: node["size"][0] for node in tried["nodes"]}
    # the older frontend enlarges a whole graph for Nodes 2.0
    drawn = {number: h * widths[number] / w for number, w, h in settled(page)}
    return {name: round(drawn[node["id"]]) for name, node in names(tried).items()}


def settled(page) -> list[list]:
    """LOOK, once it has answered the same for a second: a note's text comes later than its node."""
    answers: list = []
    while len(answers) < SETTLES:
        page.wait_for_timeout(350)
        answers.append(page.evaluate(LOOK))
        if len(answers) > 3 and all(each == answers[-1] for each in answers[-4:]):
            break
    return answers[-1]


def heights(classic: dict[str, int], newer: list[dict[str, int]]) -> dict[str, Height]:
    """What the file says is the classic page's least, or the room in the table; what is drawn is
    the most of all."""
    found = {}
    for name, least in classic.items():
        kind = name.split()[0]
        most = max([least, *(each[name] for each in newer)])
        # only Nodes 2.0 tells how high a note's text is; the classic page writes it larger
        saved = round(LARGER * most) if kind == NOTE else max(least, ROOM.get(kind, 0))
        times, more = ROOM_OF_NOTE
        drawn = round(times * most) + more if kind == NOTE else max(saved, most)
        drawn += GROWS.get(kind, 0)
        found[name] = Height(saved, drawn)
    return found


def show(page, graph: dict, path: Path) -> None:
    """An image of the window as the file's view has it."""
    page.evaluate(LOAD, without_models(graph))
    page.wait_for_timeout(900)
    page.screenshot(path=path)
