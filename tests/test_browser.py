"""The pack's page, in a real Chromium on a real server, with a real mouse and keyboard, in both of ComfyUI's ways to draw nodes, with the
frontend that the host's ComfyUI pins and with the newest one (python dev.py test fetches it and names its folder in MMDIFF_NEWEST_FRONTEND).

Needs Chromium on the machine (MMDIFF_TEST_BROWSER names another one) and the package playwright. Without them the tests are skipped, but
where CI is set they fail: there both belong.
"""
from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
import urllib.request

import pytest

from mmdiff_core.regions.preview import COLOURS

from server import PACK, Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--mute-audio")
NEWEST = "MMDIFF_NEWEST_FRONTEND"      # the folder of the newest frontend, for ComfyUI's --front-end-root
SIZE = {"width": 1500, "height": 1100}
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Graph.CanvasInfo": False, "Comfy.Minimap.Visible": False}

# An empty graph, and how nodes are put there: `window.nodes` holds them by short names.
EMPTY = """
  app.graph.clear();
  // new numbers each time, after a reload too: Nodes 2.0 takes a number that it knows for the node that had it before
  app.graph.state.lastNodeId = window.lastId = (window.lastId ?? Date.now() % 1e9) + 100;
  const nodes = window.nodes = {};
  const add = (name, kind, x, y, values = {}) => {
    const node = nodes[name] = LiteGraph.createNode(kind);
    node.pos = [x, y];
    for (const [key, value] of Object.entries(values)) {
      const widget = node.widgets.find((w) => w.name === key);
      if (!widget) throw new Error(`${kind} has no widget ${key}: ${node.widgets.map((w) => w.name)}`);
      widget.value = value;
    }
    app.graph.add(node);
  };
  const link = (from, out, to, into) => nodes[from].connect(out, nodes[to], nodes[to].inputs.findIndex((i) => i.name === into));
"""

# The small world's two subjects with regions, built in the page.
BUILD = """async () => {""" + EMPTY + """
  add("world", "MMDiffSmallWorldLoader", -1200, 0);
  for (const [i, [name, hue]] of [["Violet", 0.74], ["Teal", 0.5]].entries()) {
    add(`sprite${i}`, "MMDiffSmallWorldSprite", -900, i * 500, { kind: "ghost", first_colour: hue });
    add(`subject${i}`, "MMDiffSubjectEncoder", -500, i * 500, { name });
    link("world", 4, `subject${i}`, "mmdiff");
    link("world", 3, `subject${i}`, "clip_vision");
    link(`sprite${i}`, 0, `subject${i}`, "image");
  }
  add("masks", "MMDiffConstraintMasks", 0, 0, { width: 128, height: 96 });
  add("text", "MMDiffTextEncode", 420, 0, { text: "a ghost<|subj|> and a ghost<|subj|> at night", negative: "" });
  add("apply", "MMDiffApplyAttention", 900, 0);
  add("latent", "EmptyLatentImage", 900, 260, { width: 128, height: 128 });
  add("sample", "KSampler", 1300, 0, { steps: 4, cfg: 3, sampler_name: "dpmpp_2m", seed: 1 });
  add("decode", "VAEDecode", 1300, 400);
  add("show", "PreviewImage", 1700, 0);
  link("subject0", 0, "subject1", "subjects");
  link("subject1", 0, "masks", "subjects");
  link("masks", 0, "text", "subjects");
  link("world", 1, "text", "clip");
  link("world", 4, "text", "mmdiff");
  link("world", 0, "apply", "model");
  link("world", 4, "apply", "mmdiff");
  link("apply", 0, "sample", "model");
  link("text", 0, "sample", "positive");
  link("text", 1, "sample", "negative");
  link("latent", 0, "sample", "latent_image");
  link("sample", 0, "decode", "samples");
  link("world", 2, "decode", "vae");
  link("decode", 0, "show", "images");
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [200, 130];
  app.canvas.setDirty(true, true);
  const tracker = app.extensionManager.workflow.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);         // the newest frontend's name, the older one's
}"""
FIND = "((kind) => app.graph.nodes.find((n) => n.comfyClass === kind))"


def browser() -> str | None:
    return os.environ.get("MMDIFF_TEST_BROWSER") or next((path for name in BROWSERS if (path := shutil.which(name))), None)


def lacking() -> str | None:
    """What this machine lacks for these tests."""
    if browser() is None:
        return "the page was not tested: no Chromium on this machine (apt-get install chromium, or name one in MMDIFF_TEST_BROWSER)"
    if importlib.util.find_spec("playwright") is None:
        return "the page was not tested: the Python package playwright is not installed (pip install playwright)"
    return None


def lacking_newest() -> str | None:
    """Why there is no newest frontend to test with."""
    folder = os.environ.get(NEWEST)
    if folder and os.path.isfile(os.path.join(folder, "index.html")):
        return None
    return f"the page was not tested with ComfyUI's newest frontend: {NEWEST} is {folder!r}, and no frontend is there (python dev.py test fetches one)"


if lacking() and not os.environ.get("CI"):
    pytest.skip(lacking(), allow_module_level=True)     # one line in the summary, not one for each test


@pytest.fixture(scope="module")
def chromium():
    if why := lacking():
        pytest.fail(f"{why}; CI must have it")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser(), args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=["the host's frontend", "the newest frontend"])
def server(request, chromium, tmp_path_factory):
    """A server with the frontend that its ComfyUI pins, and one with the newest that there is."""
    if request.param == "the host's frontend":
        yield request.getfixturevalue("server")     # the one of all tests
        return
    if why := lacking_newest():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    started = Server(tmp_path_factory.mktemp("server_newest_frontend"), "--front-end-root", os.environ[NEWEST])
    yield started
    started.stop()


@pytest.fixture(scope="module", params=["litegraph", "nodes 2.0"])
def loaded(request, chromium, server, tmp_path_factory):
    """A page of ComfyUI, once for each way to draw nodes."""
    settings = {**QUIET, "Comfy.VueNodes.Enabled": request.param == "nodes 2.0"}
    asked = urllib.request.Request(f"{server.url}/api/settings", json.dumps(settings).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30):
        page = chromium.new_page(viewport=SIZE)
    page.set_default_timeout(15_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: said.type == "error" and "mmdiff." in said.text and errors.append(said.text))    # an extension of ours failed
    open_page(page, server)
    page.shots = tmp_path_factory.mktemp("screenshots") / request.param.replace(" ", "_")
    page.errors = errors
    yield page
    page.close()


def open_page(page, server) -> None:
    page.goto(server.url)
    page.wait_for_function("() => !!(window.app?.graph && app.extensionManager?.workflow?.activeWorkflow && "
                           "LiteGraph.registered_node_types.MMDiffTextEncode)", timeout=60_000)


class Editor:
    """The box editor of the graph's masks node, as a person has it before them."""

    def __init__(self, page):
        self.page, self.root = page, page.locator(".mmdiff-boxes").first
        self.stage, self.shown = self.root.locator(".stage"), self.root.locator(".box")
        self.stage.wait_for()

    @property
    def boxes(self) -> list[dict]:
        return json.loads(self.page.evaluate(f"{FIND}('MMDiffConstraintMasks').widgets.find((w) => w.name === 'boxes').value"))

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


@pytest.fixture
def page(loaded):
    loaded.evaluate(BUILD)
    loaded.locator(".mmdiff-boxes .stage").first.wait_for()
    loaded.wait_for_function("document.querySelectorAll('.mmdiff-boxes').length === 1")
    loaded.wait_for_timeout(300)            # nodes settle where they were put
    loaded.errors.clear()
    yield loaded
    assert loaded.errors == []


@pytest.fixture
def editor(page) -> Editor:
    return Editor(page)


def shot(page, name: str) -> None:
    page.screenshot(path=f"{page.shots}_{name}.png")


def close_to(box: dict, subject: int, x: float, y: float, width: float, height: float) -> bool:
    return box["subject"] == subject and all(abs(box[k] - v) < 0.02 for k, v in zip(("x", "y", "width", "height"), (x, y, width, height), strict=True))


# ---------------------------------------------------------------- drawing

def test_boxes_are_drawn_moved_resized_and_deleted_with_the_mouse(editor, page):
    where = page.evaluate("[...nodes.masks.pos]")
    editor.draw_both()
    first, second = editor.boxes
    assert close_to(first, 1, 0.1, 0.1, 0.3, 0.8) and close_to(second, 2, 0.6, 0.2, 0.3, 0.6)
    editor.drag((0.75, 0.6), (0.65, 0.7))
    assert close_to(editor.boxes[1], 2, 0.5, 0.3, 0.3, 0.6) and editor.boxes[0] == first
    editor.drag((0.8, 0.9), (0.95, 1.2))                                    # its lower right handle, out of the picture
    assert close_to(editor.boxes[1], 2, 0.5, 0.3, 0.45, 0.7)
    editor.drag((0.72, 0.6), (2.0, -2.0))                                   # moved as far as there is room
    assert close_to(editor.boxes[1], 2, 0.55, 0.0, 0.45, 0.7)
    shot(page, "boxes")
    editor.shown.nth(0).locator(".remove").click()
    assert len(editor.boxes) == editor.shown.count() == 1 and editor.boxes[0]["subject"] == 2
    editor.drag((0.1, 0.5), (0.105, 0.505))                                 # a click is no box
    assert len(editor.boxes) == 1
    assert page.evaluate("[...nodes.masks.pos]") == where, "the node stays where it is"


def test_each_box_says_whose_it_is_in_its_subjects_colour(editor, page):
    editor.draw_both()
    editor.choose(3)
    editor.drag((0.45, 0.85), (0.95, 0.95))
    assert editor.shown.locator(".label").all_inner_texts() == ["1 Violet", "2 Teal", "3 no such subject"]
    for i, colour in enumerate(COLOURS[:3]):
        red, green, blue = bytes.fromhex(colour[1:])
        assert editor.shown.nth(i).evaluate("(e) => getComputedStyle(e).borderTopColor") == f"rgb({red}, {green}, {blue})"


def test_the_drawing_has_the_pictures_shape(editor, page):
    area = editor.stage.bounding_box()
    assert area["width"] / area["height"] == pytest.approx(128 / 96, rel=0.02) and area["width"] > 150
    page.evaluate("""() => { const width = nodes.masks.widgets.find((w) => w.name === "width"); width.value = 64; width.callback(64); }""")
    area = editor.stage.bounding_box()
    assert area["width"] / area["height"] == pytest.approx(64 / 96, rel=0.02)


def test_the_drawing_has_the_shape_of_a_connected_latent_and_without_one_of_the_typed_size(editor, page):
    page.evaluate("""() => {
      nodes.latent.connect(0, nodes.masks, nodes.masks.inputs.findIndex((i) => i.name === "latent"));
      nodes.latent.widgets.find((w) => w.name === "width").value = 256;
    }""")
    page.mouse.move(5, 5)
    editor.root.hover()
    page.wait_for_timeout(200)
    area = editor.stage.bounding_box()
    assert area["width"] / area["height"] == pytest.approx(256 / 128, rel=0.05)
    page.evaluate("() => nodes.masks.disconnectInput(nodes.masks.inputs.findIndex((i) => i.name === 'latent'))")
    page.wait_for_timeout(200)
    area = editor.stage.bounding_box()
    assert area["width"] / area["height"] == pytest.approx(128 / 96, rel=0.05)


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
    keys.press("3")
    assert [box["subject"] for box in editor.boxes] == [3, 1]
    keys.press("Tab")
    keys.press("Delete")
    assert [box["subject"] for box in editor.boxes] == [3]
    assert page.evaluate("app.graph.nodes.length") == 12, "Delete removed the box, not the node"


# ---------------------------------------------------------------- the widget holds the truth

def test_boxes_are_in_the_saved_graph_and_come_back_from_it(editor, page):
    editor.draw_both()
    drawn = editor.boxes
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    (node,) = (n for n in json.loads(saved)["nodes"] if n["type"] == "MMDiffConstraintMasks")
    assert json.loads(node["widgets_values"][1]) == drawn and len(node["widgets_values"]) == 10
    page.evaluate("() => app.graph.clear()")
    page.evaluate("(saved) => app.loadGraphData(JSON.parse(saved))", saved)
    again = Editor(page)
    again.shown.nth(1).wait_for()
    assert again.boxes == drawn and again.shown.locator(".label").all_inner_texts() == ["1 Violet", "2 Teal"]


def test_boxes_are_copied_with_their_node(editor, page):
    editor.draw_both()
    page.evaluate("() => { app.canvas.selectItems([nodes.masks]); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }")
    page.wait_for_function("document.querySelectorAll('.mmdiff-boxes').length === 2")
    found = page.evaluate("app.graph.nodes.filter((n) => n.comfyClass === 'MMDiffConstraintMasks').map((n) => n.widgets.find((w) => w.name === 'boxes').value)")
    assert len(found) == 2 and found[0] == found[1] and page.locator(".mmdiff-boxes").nth(1).locator(".box").count() == 2


def test_boxes_and_names_come_along_into_a_subgraph_and_out_of_one(editor, page, server):
    editor.draw_both()
    boxes = editor.boxes
    told = "() => [...document.querySelectorAll('.mmdiff-boxes .label')].map((e) => e.textContent)"
    page.evaluate("() => { app.graph.convertToSubgraph(new Set([nodes.subject0, nodes.subject1])); }")
    page.mouse.move(5, 5)
    editor.root.hover()
    page.wait_for_timeout(200)
    assert page.evaluate(told) == ["1 Violet", "2 Teal"], "the subjects are inside a subgraph, the boxes outside"
    inner = page.evaluate("""async () => {
      const { subgraph } = app.graph.convertToSubgraph(new Set([nodes.masks, nodes.text]));
      app.canvas.setGraph(subgraph);
      app.canvas.ds.offset = [200 - subgraph.nodes[0].pos[0], 130 - subgraph.nodes[0].pos[1]];
      await new Promise((then) => setTimeout(then, 800));
      return subgraph.nodes.find((n) => n.comfyClass === "MMDiffConstraintMasks").widgets.find((w) => w.name === "boxes").value;
    }""")
    assert json.loads(inner) == boxes
    page.mouse.move(5, 5)
    page.locator(".mmdiff-boxes:visible").last.hover()
    page.wait_for_timeout(200)
    assert page.evaluate(told)[-2:] == ["1 Violet", "2 Teal"], "boxes in one subgraph, subjects in another"
    shot(page, "inside_a_subgraph")
    page.evaluate("() => app.canvas.setGraph(app.graph.rootGraph ?? app.graph)")
    (sent,) = (n["inputs"]["boxes"] for n in page.evaluate("async () => (await app.graphToPrompt()).output").values()
               if n["class_type"] == "MMDiffConstraintMasks")
    assert json.loads(sent) == boxes
    open_page(page, server)                 # clearing a graph leaves the elements of its subgraphs behind


def test_every_finished_change_can_be_undone_and_done_again(page):
    page.evaluate("""async () => {                  // as a graph is that was loaded: the page arranges one that a script built when it first undoes
      const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
      await app.loadGraphData(saved, true, false, app.extensionManager.workflow.activeWorkflow);
    }""")
    page.wait_for_timeout(500)
    page.evaluate("() => { const it = app.extensionManager.workflow.activeWorkflow.changeTracker; (it.captureCanvasState ?? it.checkState).call(it); }")
    editor = Editor(page)
    editor.draw_both()
    two = editor.boxes
    look = """() => {
      const { activeState, undoQueue, redoQueue } = app.extensionManager.workflow.activeWorkflow.changeTracker;
      const count = (graph) => JSON.parse(graph.nodes.find((n) => n.type === "MMDiffConstraintMasks")?.widgets_values[1] ?? "[]").length;
      return { saved: count(activeState), shown: document.querySelectorAll(".mmdiff-boxes .box").length, back: undoQueue.map(count), on: redoQueue.map(count) };
    }"""

    def wait(count: int) -> dict:
        end = time.monotonic() + 10
        while (found := page.evaluate(look)) and (found["saved"], found["shown"]) != (count, count) and time.monotonic() < end:
            page.wait_for_timeout(50)
        return found

    assert wait(2)["shown"] == 2
    for keys, count in (("Control+z", 1), ("Control+z", 0), ("Control+y", 1), ("Control+y", 2)):
        page.wait_for_timeout(200)          # keys are handled with the next frame
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
    assert page.evaluate(f"(() => {{ const n = {FIND}('MMDiffConstraintMasks'); return n.size[1] >= n.computeSize()[1]; }})()"), "the node has room for it"
    inputs = page.evaluate("async () => (await app.graphToPrompt()).output")
    (sent,) = (n["inputs"] for n in inputs.values() if n["class_type"] == "MMDiffConstraintMasks")
    assert sent["feather"] == 8 and sent["width"] == 1024 and sent["free_subjects"] == "everywhere" and sent["boxes"] == "[]"


def test_the_drawn_boxes_reach_the_server_and_the_node_shows_the_regions(editor, page, server):
    editor.draw_both()
    page.evaluate("(feather) => { nodes.masks.widgets.find((w) => w.name === 'feather').value = feather; }", time.time() % 4)     # not cached
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    (masks,) = (n["inputs"] for n in sent.values() if n["class_type"] == "MMDiffConstraintMasks")
    assert json.loads(masks["boxes"]) == editor.boxes and "box_editor" not in masks
    entry = run_and_wait(page, server)
    made = {sent[node]["class_type"]: out for node, out in entry["outputs"].items()}
    assert made["PreviewImage"]["images"] and made["MMDiffConstraintMasks"]["images"]
    name = made["MMDiffConstraintMasks"]["images"][0]["filename"]
    page.wait_for_function(f"(name) => {FIND}('MMDiffConstraintMasks').imgs?.[0]?.src.includes(name) || "
                           "[...document.querySelectorAll('[data-node-id] img')].some((i) => i.src.includes(name))", arg=name)
    page.wait_for_timeout(300)
    shot(page, "after_a_run")
    assert editor.shown.count() == 2 and editor.stage.bounding_box()["width"] > 150
    words = page.locator(".mmdiff-text b")
    assert words.count() == 2 and len({words.nth(i).evaluate("(word) => word.style.color") for i in range(2)}) == 2


def run_and_wait(page, server) -> dict:
    """Queue the page's graph; its entry in the server's history."""
    before = set(server.get("/history"))
    page.evaluate("() => app.queuePrompt(0)")
    end = time.monotonic() + 120
    while not (new := {k: v for k, v in server.get("/history").items() if k not in before}) and time.monotonic() < end:
        time.sleep(0.2)
    (entry,) = new.values()
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry


def test_the_bundled_graph_of_maps_shows_them_live_and_over_the_picture(page, server):
    graph = json.loads((PACK / "workflows/small_world_attention_maps.json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][:3] = [int(time.time()), "fixed", 6]         # not cached
    graph["extra"]["ds"]["scale"] = 0.3                                         # all of it in view: what is not is not drawn
    page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
    page.wait_for_timeout(300)
    entry = run_and_wait(page, server)
    page.wait_for_function("() => document.querySelector('.mmdiff-live img')?.src.startsWith('data:image/png')")
    assert page.locator(".mmdiff-live").inner_text().strip() == "violet, teal (step 6 of 6)".replace("violet, teal", "Violet, Teal")
    assert page.locator(".mmdiff-live").evaluate("(frame) => frame.scrollHeight <= frame.clientHeight"), "the words below the maps are not cut off"
    (maps,) = (node["id"] for node in graph["nodes"] if node["type"] == "MMDiffAttentionMaps")
    files = [image["filename"] for image in entry["outputs"][str(maps)]["images"]]
    assert len(files) == 4
    page.wait_for_function(f"([node, file]) => {FIND}('MMDiffAttentionMaps').imgs?.length === 4 || "         # Nodes 2.0 may show one at a time
                           "[...document.querySelectorAll(`[data-node-id='${node}'] img`)].some((i) => i.src.includes(file))", arg=[maps, files[0]])
    page.wait_for_timeout(300)
    shot(page, "maps")


def test_no_two_nodes_of_a_bundled_graph_overlap_as_the_page_draws_them(loaded):
    """Nodes 2.0 draws nodes larger than the file says, and those with pictures larger still."""
    look = """() => {
      const boxes = app.graph.nodes.map((n) => {
        const shown = document.querySelector(`[data-node-id="${n.id}"]`)?.getBoundingClientRect(), scale = app.canvas.ds.scale;
        const [width, height] = shown ? [shown.width / scale, shown.height / scale - 30] : n.size;     // a title is 30 high, above pos
        return [n.title, n.pos[0], n.pos[1] - 30, n.pos[0] + width, n.pos[1] + height];
      });
      const over = (a, b) => a[1] < b[3] && b[1] < a[3] && a[2] < b[4] && b[2] < a[4];
      return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => over(a, b)).map((b) => `${a[0]} and ${b[0]}`));
    }"""
    for path in sorted((PACK / "workflows").glob("*.json")):
        graph = json.loads(path.read_text(encoding="utf-8"))
        for node in graph["nodes"]:
            node["properties"].pop("models", None)          # the page asks about those that are missing, over everything else
        loaded.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
        loaded.wait_for_timeout(400)
        assert loaded.evaluate(look) == [], path.stem


def test_a_bundled_graph_opens_with_its_photo_in_the_input_folder(page, server):
    photo = server.home / "input/grace_hopper.jpg"
    photo.unlink(missing_ok=True)
    page.evaluate("async () => { await app.refreshComboInNodes(); }")
    graph = json.loads((PACK / "workflows/two_people_boxes.json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        node["properties"].pop("models", None)              # the page asks about those that are missing, over everything else
    page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
    page.wait_for_function("() => app.graph.nodes.some((n) => n.comfyClass === 'LoadImage' && "
                           "n.widgets[0].options.values.includes('grace_hopper.jpg') && n.widgets[0].value === 'grace_hopper.jpg')")
    assert photo.read_bytes() == (PACK / "web/photos/grace_hopper.jpg").read_bytes()
    page.wait_for_timeout(700)
    shot(page, "photos")                                    # both boxes show their person: only the eye can tell that a background has loaded


# ---------------------------------------------------------------- names in the prompt

def prompt_box(page, number: int = 0):
    drawn = page.locator("[data-node-id]:has-text('MM-Diff Text Encode') textarea")
    return (drawn if drawn.count() else page.locator("textarea.comfy-multiline-input")).nth(number)


def test_after_an_opened_marker_the_prompt_offers_the_subjects_names(page):
    box, names = prompt_box(page), page.locator(".mmdiff-names")
    box.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("a ghost<|")
    assert names.locator("li").all_inner_texts() == ["subj", "Violet", "Teal"]
    shot(page, "names")
    page.keyboard.type("t")
    assert names.locator("li").all_inner_texts() == ["Teal"]
    page.keyboard.press("Enter")
    page.keyboard.type(" and a robot<|")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type(" at night<|")
    names.locator("li").nth(0).click()
    wanted = "a ghost<|Teal|> and a robot<|Violet|> at night<|subj|>"
    assert box.input_value() == wanted and names.count() == 0
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert [n["inputs"]["text"] for n in sent.values() if n["class_type"] == "MMDiffTextEncode"] == [wanted]


def test_the_offer_follows_the_graph_and_goes_away_again(page):
    box, names = prompt_box(page), page.locator(".mmdiff-names")
    page.evaluate("() => { nodes.subject0.mode = 4; const name = nodes.subject1.widgets.find((w) => w.name === 'name'); name.value = 'Sea'; }")
    box.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("a ghost<|")
    assert names.locator("li").all_inner_texts() == ["subj", "Sea"], "a bypassed node adds nobody"
    page.keyboard.press("Escape")
    assert names.count() == 0 and box.input_value() == "a ghost<|"
    page.keyboard.press("Backspace")
    page.keyboard.type("|")
    assert names.count() == 1
    page.keyboard.type("zz")
    assert names.count() == 0
    prompt_box(page, 1).click()
    page.keyboard.type("<|")
    assert names.count() == 0, "the negative prompt names no subject"


# ---------------------------------------------------------------- the faces of a portrait

# A portrait subject from pictures of the input folder; "discs" finds a face wherever one was drawn.
PORTRAIT = """async (names) => {""" + EMPTY + """
  add("tiny", "MMDiffLoadTinyReferenceModel", -900, 0);
  add("mmdiff", "MMDiffLoad", -900, 250, { checkpoint: "tiny-portrait" });
  add("faces", "MMDiffLoadFaceAnalysis", -900, 450, { model: "discs", device: "cpu" });
  add("ann", "MMDiffSubjectEncoder", 0, 0, { name: "Ann" });
  add("ben", "MMDiffSubjectEncoder", 380, 0, { name: "Ben" });
  add("masks", "MMDiffConstraintMasks", 760, 0, { width: 128, height: 96 });
  add("show", "PreviewImage", 760, 720);
  let last;
  for (const [i, name] of names.entries()) {
    add(`load${i}`, "LoadImage", -500 + 60 * i, 350 * i, { image: name });
    if (last) {
      add(`batch${i}`, "ImageBatch", -200, 300 * i);
      link(last, 0, `batch${i}`, "image1");
      link(`load${i}`, 0, `batch${i}`, "image2");
    }
    last = last ? `batch${i}` : `load${i}`;
  }
  for (const subject of ["ann", "ben"]) {
    link("mmdiff", 0, subject, "mmdiff");
    link("tiny", 3, subject, "clip_vision");
    link("faces", 0, subject, "faces");
  }
  link(last, 0, "ann", "image");
  link("load0", 0, "ben", "image");
  link("ann", 0, "ben", "subjects");
  link("ben", 0, "masks", "subjects");
  link("masks", 1, "show", "images");
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [200, 130];
  const saved = JSON.parse(JSON.stringify(app.graph.serialize()));      // as a graph is that was loaded, for the page's undo
  await app.loadGraphData(saved, true, false, app.extensionManager.workflow.activeWorkflow);
  for (const [name, { id }] of Object.entries(nodes)) nodes[name] = app.graph.getNodeById(id);
  await new Promise((then) => setTimeout(then, 500));
  const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
  (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
}"""
TWO, THREE = ((150, 260, 60), (620, 300, 110)), ((120, 200, 60), (460, 300, 100), (780, 400, 70))


def drawn(server, name: str, discs) -> str:
    """A picture of faces that the stand-in finds, new to the server each time."""
    from PIL import Image
    from test_faces import picture
    image = Image.fromarray(picture(*discs))
    name = f"{time.time_ns()}_{name}.png"
    image.save(server.home / "input" / name)
    return name


class Picker:
    """The face picker of a subject's node, as a person has it before them."""

    def __init__(self, page, server, *pictures: str):
        self.page, self.server = page, server
        page.evaluate(PORTRAIT, list(pictures))
        self.root = page.locator(".mmdiff-faces:visible").first
        self.faces, self.says, self.largest = self.root.locator(".face"), self.root.locator(".says"), self.root.get_by_role("button", name="largest")

    def run(self) -> dict:
        """Queue the graph; what Ann's node was told, once the page shows it."""
        entry = run_and_wait(self.page, self.server)
        sent = entry["outputs"][str(self.page.evaluate("nodes.ann.id"))]
        self.page.wait_for_timeout(500)
        return sent

    @property
    def number(self) -> int:
        return self.page.evaluate("app.graph.getNodeById(nodes.ann.id).widgets.find((w) => w.name === 'face').value")

    def marked(self, what: str) -> list[str]:
        return self.root.locator(f".face.{what} b").all_inner_texts()


def test_a_click_on_a_face_makes_the_next_run_use_it_and_undo_takes_it_back(page, server):
    picker = Picker(page, server, drawn(server, "two", TWO))
    assert page.locator(".mmdiff-faces:visible").count() == 0, "nothing to pick before a run"
    assert picker.run()["faces"][0]["used"] == 2
    picker.faces.nth(1).wait_for()
    assert picker.faces.all_inner_texts() == ["1", "2"] and picker.marked("used") == picker.marked("next") == ["2"]
    assert picker.says.inner_text() == "face 2 is used" and picker.largest.get_attribute("aria-pressed") == "true"
    stage = picker.root.locator(".stage").bounding_box()
    assert stage["width"] / stage["height"] == pytest.approx(900 / 600, rel=0.02) and stage["width"] > 150
    left = picker.faces.nth(0).bounding_box()
    assert (left["x"] + left["width"] / 2 - stage["x"]) / stage["width"] == pytest.approx(TWO[0][0] / 900, abs=0.03)
    shot(page, "faces")
    where = page.evaluate("[...nodes.ann.pos]")
    page.mouse.click(left["x"] + left["width"] / 2, left["y"] + left["height"] / 2)
    assert picker.number == 1 and picker.says.inner_text() == "next run: face 1" and picker.faces.nth(0).get_attribute("aria-pressed") == "true"
    assert picker.marked("used") == ["2"] and picker.marked("next") == ["1"] and page.evaluate("[...nodes.ann.pos]") == where
    shot(page, "faces_picked")
    page.keyboard.press("Control+z")
    page.wait_for_function("app.graph.getNodeById(nodes.ann.id).widgets.find((w) => w.name === 'face').value === 0")
    page.wait_for_timeout(500)
    assert picker.faces.count() == 2 and picker.marked("next") == ["2"], "the picker is still there and follows"
    picker.faces.nth(0).click()
    assert picker.number == 1, "what is shown is the new node's picker"
    assert picker.run()["faces"][0]["used"] == 1
    assert picker.marked("used") == picker.marked("next") == ["1"] and picker.says.inner_text() == "face 1 is used"
    picker.largest.click()
    assert picker.number == 0 and picker.marked("next") == ["2"]


def test_faces_are_picked_with_the_keyboard(page, server):
    picker = Picker(page, server, drawn(server, "three", THREE))
    picker.run()
    picker.largest.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert picker.number == 1 and picker.faces.nth(0).get_attribute("aria-label") == "Face 1 of 3"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert picker.number == 3 and [f.get_attribute("aria-pressed") for f in picker.faces.all()] == ["false", "false", "true"]
    assert picker.faces.nth(1).get_attribute("aria-label") == "Face 2 of 3, used in the last run"


def test_the_widget_changed_by_hand_shows_on_the_picture(page, server):
    picker = Picker(page, server, drawn(server, "three", THREE))
    picker.run()
    page.evaluate("""() => { const face = nodes.ann.widgets.find((w) => w.name === "face"); face.value = 3; face.callback(3); }""")
    assert picker.marked("next") == ["3"]
    page.evaluate("""() => { const face = nodes.ann.widgets.find((w) => w.name === "face"); face.value = 9; face.callback(9); }""")
    assert picker.marked("next") == [] and picker.says.inner_text() == "there is no face 9 here"


def test_one_face_takes_no_room_and_a_second_picture_is_turned_to(page, server):
    picker = Picker(page, server, drawn(server, "one", TWO[1:]))
    picker.run()
    assert page.locator(".mmdiff-faces:visible").count() == 0
    picker = Picker(page, server, drawn(server, "two", TWO), drawn(server, "one", TWO[:1]), drawn(server, "three", THREE))
    picker.run()
    assert picker.faces.count() == 2 and "1 of 3" in picker.root.locator(".turn").inner_text()
    picker.faces.nth(1).click(force=True)       # past the check that it is enabled
    assert picker.number == 0 and "picture 2 has 1 face" in picker.says.inner_text()
    shot(page, "faces_not_on_every_picture")
    picker.root.get_by_role("button", name="Next picture").click()
    assert picker.faces.count() == 3 and "3 of 3" in picker.root.locator(".turn").inner_text() and picker.marked("used") == ["2"]
    shot(page, "faces_of_three_pictures")
    picker.faces.nth(0).click()
    assert picker.number == 1


def test_a_face_number_from_another_node_is_left_alone(page, server):
    picker = Picker(page, server, drawn(server, "two", TWO))
    picker.run()
    page.evaluate("""() => {
      const number = LiteGraph.createNode("PrimitiveInt");
      number.pos = [-300, 700];
      app.graph.add(number);
      nodes.ann.widgets.find((w) => w.name === "face").value = 0;
      number.connect(0, nodes.ann, nodes.ann.inputs.findIndex((i) => i.name === "face"));
    }""")
    assert picker.says.inner_text() == "face is connected: it is chosen there"
    picker.faces.nth(0).click(force=True)       # past the check that it is enabled
    assert picker.number == 0 and {f.get_attribute("aria-disabled") for f in picker.faces.all()} == {"true"}


def test_the_picker_is_there_again_after_another_tab(page, server):
    picker = Picker(page, server, drawn(server, "two", TWO))
    picker.run()
    key = page.evaluate("app.extensionManager.workflow.activeWorkflow.filename")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("(key) => app.extensionManager.workflow.activeWorkflow.filename !== key", arg=key)
    page.wait_for_timeout(300)
    assert page.locator(".mmdiff-faces:visible").count() == 0
    page.locator(".workflow-tabs").get_by_text(key, exact=True).click()
    picker.faces.nth(1).wait_for()
    page.wait_for_timeout(300)
    picker.faces.nth(0).click()
    assert picker.number == 1 and picker.marked("used") == ["2"]


# ---------------------------------------------------------------- who a box is for, by sight

def test_each_box_shows_its_subjects_reference_and_after_a_run_what_the_encoder_saw(page, server):
    first, second = drawn(server, "first", TWO[:1]), drawn(server, "second", TWO[1:])
    page.evaluate(PORTRAIT, [first])
    page.evaluate("""(name) => {
      const load = LiteGraph.createNode("LoadImage");
      load.pos = [-500, 800];
      load.widgets.find((w) => w.name === "image").value = name;
      const dot = LiteGraph.createNode("Reroute");
      for (const node of [load, dot]) app.graph.add(node);
      load.connect(0, dot, 0);
      dot.connect(0, nodes.ben, nodes.ben.inputs.findIndex((i) => i.name === "image"));
    }""", second)
    editor = Editor(page)
    editor.draw_both()
    look = "(e) => decodeURIComponent(getComputedStyle(e).backgroundImage)"
    shown = [editor.shown.nth(i).locator(".likeness").evaluate(look) for i in range(2)]
    assert f"filename={first}" in shown[0] and f"filename={second}" in shown[1] and all("type=input" in address for address in shown)
    assert f"filename={second}" in editor.root.locator(".thumb").evaluate(look), "the bar shows whom the next box is for"
    shot(page, "likeness_before")
    entry = run_and_wait(page, server)
    page.wait_for_timeout(500)
    for i, name in enumerate(("ann", "ben")):
        (seen,) = entry["outputs"][str(page.evaluate(f"nodes.{name}.id"))]["images"]
        assert f"filename={seen['filename']}" in editor.shown.nth(i).locator(".likeness").evaluate(look)
    shot(page, "likeness")
    before = editor.boxes
    editor.drag((0.25, 0.5), (0.3, 0.5))
    assert editor.boxes[0]["x"] > before[0]["x"], "the picture does not catch the mouse"
    page.evaluate("() => nodes.ben.disconnectInput(nodes.ben.inputs.findIndex((i) => i.name === 'subjects'))")
    page.mouse.move(5, 5)
    editor.root.hover()
    addresses = [editor.shown.nth(i).locator(".likeness").evaluate(look) for i in range(2)]
    assert seen["filename"] in addresses[0] and addresses[1] == "none", "Ben comes first now, and nobody second"


def test_a_box_without_a_picture_of_its_subject_stays_plain_and_a_loaded_subject_brings_its_own(editor, page):
    editor.draw_both()
    look = "() => [...document.querySelectorAll('.mmdiff-boxes .likeness')].map((e) => decodeURIComponent(e.style.backgroundImage))"
    assert page.evaluate(look) == ["", ""], "what a sprite will look like is not known before a run"
    page.evaluate("""() => {
      const loaded = LiteGraph.createNode("MMDiffLoadSubject");
      loaded.pos = [-500, 900];
      app.graph.add(loaded);
      app.nodeOutputs[loaded.id] = { images: [{ filename: "kept.png", subfolder: "", type: "temp" }] };
      loaded.connect(0, nodes.subject1, nodes.subject1.inputs.findIndex((i) => i.name === "subjects"));
    }""")
    page.mouse.move(5, 5)
    editor.root.hover()
    first, second = page.evaluate(look)
    assert "filename=kept.png" in first and "type=temp" in first and second == ""


# ---------------------------------------------------------------- the page's language

def set_locale(server: Server, locale: str) -> None:
    asked = urllib.request.Request(f"{server.url}/api/settings", json.dumps({**QUIET, "Comfy.Locale": locale}).encode(),
                                   {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30):
        pass


def test_the_box_editor_speaks_the_language_that_comfyui_is_set_to(chromium, server):
    set_locale(server, "zh")
    page = chromium.new_page(viewport=SIZE)
    try:
        open_page(page, server)
        page.evaluate(BUILD)
        editor = Editor(page)
        assert editor.root.locator(".hint").inner_text() == "拖动鼠标画方框" and "Shift+方向键" in editor.stage.get_attribute("title")
        assert editor.root.locator(".bar button").nth(1).get_attribute("title") == "主体 2：Teal"
    finally:
        page.close()
        set_locale(server, "en")
