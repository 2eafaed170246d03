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

from mmdiff_core.shapes import COLOURS

from server import PACK, Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--mute-audio")
NEWEST = "MMDIFF_NEWEST_FRONTEND"      # the folder of the newest frontend, for ComfyUI's --front-end-root
SIZE = {"width": 1500, "height": 1100}
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Graph.CanvasInfo": False, "Comfy.Minimap.Visible": False}

# The small world's two subjects with regions, built in the page. `window.nodes` holds the nodes by short names.
BUILD = """async () => {
  app.graph.clear();
  app.graph.state.lastNodeId = window.lastId = (window.lastId ?? 0) + 100;     // Nodes 2.0 puts a number it knows where it was before
  const nodes = window.nodes = {};
  const add = (name, kind, x, y, values = {}) => {
    const node = nodes[name] = LiteGraph.createNode(kind);
    node.pos = [x, y];
    for (const [key, value] of Object.entries(values)) node.widgets.find((w) => w.name === key).value = value;
    app.graph.add(node);
  };
  const link = (from, out, to, into) => nodes[from].connect(out, nodes[to], nodes[to].inputs.findIndex((i) => i.name === into));
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
    page.goto(server.url)
    page.wait_for_function("() => !!(window.app?.graph && app.extensionManager?.workflow?.activeWorkflow && "
                           "LiteGraph.registered_node_types.MMDiffTextEncode)", timeout=60_000)
    page.shots = tmp_path_factory.mktemp("screenshots") / request.param.replace(" ", "_")
    page.errors = errors
    yield page
    page.close()


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
        page.goto(server.url)
        page.wait_for_function("() => !!(window.app?.graph && app.extensionManager?.workflow?.activeWorkflow && "
                               "LiteGraph.registered_node_types.MMDiffTextEncode)", timeout=60_000)
        page.evaluate(BUILD)
        editor = Editor(page)
        assert editor.root.locator(".hint").inner_text() == "拖动鼠标画方框" and "Shift+方向键" in editor.stage.get_attribute("title")
        assert editor.root.locator(".bar button").nth(1).get_attribute("title") == "主体 2：Teal"
    finally:
        page.close()
        set_locale(server, "en")
