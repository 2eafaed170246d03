"""A page of ComfyUI in a real Chromium.

How it is opened, what graphs are built there, and how nodes are seen and used.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
import urllib.request

from support.page_graphs import FIND
from support.server import Server

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--mute-audio",
)

# the folder of the newest frontend, for ComfyUI's --front-end-root
NEWEST = "MMDIFF_NEWEST_FRONTEND"

SIZE = {"width": 1500, "height": 1100}

QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Minimap.Visible": False,
    # else a dialog lies over a graph whose models are not there
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}


def browser() -> str | None:
    return os.environ.get("MMDIFF_TEST_BROWSER") or next(
        (path for name in BROWSERS if (path := shutil.which(name))), None
    )


def lacking() -> str | None:
    """What this machine lacks for these tests."""
    if browser() is None:
        return (
            "the page was not tested: no Chromium on this machine (apt-get install chromium, or "
            "name one in MMDIFF_TEST_BROWSER)"
        )
    if importlib.util.find_spec("playwright") is None:
        return "the page was not tested: playwright is not installed (pip install playwright)"
    return None


def lacking_newest() -> str | None:
    """Why there is no newest frontend to test with."""
    folder = os.environ.get(NEWEST)
    if folder and os.path.isfile(os.path.join(folder, "index.html")):
        return None
    return (
        f"the page was not tested with ComfyUI's newest frontend: {NEWEST} is {folder!r}, and no "
        "frontend is there (python dev.py test fetches one)"
    )


# a page's error where a script of the pack uses what the frontend calls deprecated
NOTHING_DEPRECATED = """() => {
  LiteGraph.alwaysRepeatWarnings = true;
  LiteGraph.onDeprecationWarning = [(text) => {
    const ours = new Error().stack.split("\\n").find((line) => line.includes("/extensions/"));
    if (ours) console.error(`mmdiff.deprecated: ${text} ${ours}`);
  }];
}"""


# until nothing on the canvas has moved for 20 frames in a row, however slow the machine is
SETTLED = """async () => {
  const rounded = (...numbers) => numbers.map(Math.round);
  const look = () => JSON.stringify([
    app.canvas.ds.scale,
    ...app.graph.nodes.map((n) => rounded(...n.pos, ...n.size)),
    ...[...document.querySelectorAll("[data-node-id]")].map((drawn) => {
      const { x, y, width, height } = drawn.getBoundingClientRect();
      return rounded(x, y, width, height);
    }),
  ]);
  let before = "", same = 0;
  for (let frame = 0; frame < 1000 && same < 20; frame++) {
    await new Promise((then) => requestAnimationFrame(() => setTimeout(then, 20)));
    const now = look();
    same = now === before ? same + 1 : 0;
    before = now;
  }
  return same;
}"""


def open_graph(page, graph: dict) -> None:
    """Open a workflow, and wait until its nodes lie still."""
    page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
    assert page.evaluate(SETTLED) == 20, "nodes keep moving"


def open_page(page, server) -> None:
    page.goto(server.url, timeout=300_000)
    page.wait_for_function(
        "() => !!(window.app?.graph && app.extensionManager?.workflow?.activeWorkflow && "
        "LiteGraph.registered_node_types.MMDiffTextEncode)",
        timeout=300_000,
    )
    page.evaluate(NOTHING_DEPRECATED)


def open_without_a_graph(page, server) -> None:
    """Open the page anew: clearing a graph leaves the elements of its subgraphs behind, and some
    frontends open the last graph again."""
    page.evaluate("() => app.loadGraphData({ version: 0.4, nodes: [], links: [] })")
    page.wait_for_timeout(1000)
    open_page(page, server)


class Editor:
    """The box editor of the graph's masks node, as a person has it before them."""

    def __init__(self, page):
        self.page, self.root = page, page.locator(".mmdiff-boxes").first
        self.stage, self.shown = self.root.locator(".stage"), self.root.locator(".box")
        self.stage.wait_for()

    @property
    def boxes(self) -> list[dict]:
        return json.loads(
            self.page.evaluate(
                f"{FIND}('MMDiffConstraintMasks').widgets.find((w) => w.name === 'boxes').value"
            )
        )

    def at(self, x: float, y: float) -> tuple[float, float]:
        area = self.stage.bounding_box()
        return area["x"] + x * area["width"], area["y"] + y * area["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(*start))
        mouse.down()
        mouse.move(*self.at((start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
        mouse.move(*self.at(*end))
        mouse.up()

    def choose(self, subject: int) -> None:
        self.root.locator(".bar button").nth(subject - 1).click()

    def draw_both(self) -> None:
        self.choose(1)
        self.drag((0.1, 0.1), (0.4, 0.9))
        self.choose(2)
        self.drag((0.6, 0.2), (0.9, 0.8))


def shot(page, name: str) -> None:
    page.screenshot(path=f"{page.shots}_{name}.png")


def close_to(box: dict, subject: int, x: float, y: float, width: float, height: float) -> bool:
    return box["subject"] == subject and all(
        abs(box[k] - v) < 0.02
        for k, v in zip(("x", "y", "width", "height"), (x, y, width, height), strict=True)
    )


# ---------------------------------------------------------------- the widget holds the truth


def run_and_wait(page, server) -> dict:
    """Queue the page's graph; its entry in the server's history."""
    before = set(server.get("/history"))
    page.evaluate("() => app.queuePrompt(0)")
    end = time.monotonic() + 120
    while (
        not (new := {k: v for k, v in server.get("/history").items() if k not in before})
        and time.monotonic() < end
    ):
        time.sleep(0.2)
    (entry,) = new.values()
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry


# ---------------------------------------------------------------- names in the prompt


def prompt_box(page, number: int = 0):
    drawn = page.locator("[data-node-id]:has-text('MM-Diff Text Encode') textarea")
    return (drawn if drawn.count() else page.locator("textarea.comfy-multiline-input")).nth(number)


# ---------------------------------------------------------------- the page's language


def change_settings(server: Server, settings: dict) -> None:
    """ComfyUI's settings: those of a quiet page, and these."""
    asked = urllib.request.Request(
        f"{server.url}/api/settings",
        json.dumps(QUIET | settings).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=30):
        pass
