"""What is missing, on the page: the table on MM-Diff Doctor, ComfyUI's own list of missing models,
which names the released checkpoint and the face models too, and what is said to a run without them.
"""

from __future__ import annotations

import json
import time

import pytest

from mmdiff_core.host.doctor import SOURCES

from support.page import run_and_wait, shot
from support.page_graphs import EMPTY
from support.paths import PACK

ALONE = (
    "async () => {"
    + EMPTY
    + """
  add("doctor", "MMDiffDoctor", 0, 0);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [200, 130];
  app.canvas.setDirty(true, true);
}"""
)
PATH = "/a/folder/with/a/long/name" * 8
EXAMPLE = {
    "text": ["MM-Diff Doctor: 1 missing, 1 note\n\nVersions\n  ok      ComfyUI 0.3.75"],
    "lines": [
        {"state": "ok", "part": "Versions", "text": "ComfyUI 0.3.75"},
        {"state": "note", "part": "Folders", "text": f"mmdiff: {PATH} (does not exist)"},
        {"state": "missing", "part": "Base models", "text": "nothing there. Get <b>SDXL</b> from "
         "https://huggingface.co/stabilityai, put it into models/checkpoints."},
    ],
}  # fmt: skip
BADGES = """(table) => [...table.querySelectorAll(".state span")].map((badge) => {
  const { backgroundColor, color } = getComputedStyle(badge);
  return [badge.innerText, backgroundColor, color];
})"""
CUT_OFF = """(table) => [...table.querySelectorAll("td")].filter(
  (cell) => cell.scrollWidth > cell.clientWidth).map((cell) => cell.innerText)"""


@pytest.fixture
def table(loaded, page_server):
    """The doctor's table after a run."""
    loaded.evaluate(ALONE)
    loaded.locator(".mmdiff-doctor .head:has-text('Run this node')").wait_for()
    loaded.errors.clear()
    entry = run_and_wait(loaded, page_server)
    found = loaded.locator(".mmdiff-doctor table")
    found.locator("td").first.wait_for()
    loaded.wait_for_timeout(300)
    (output,) = entry["outputs"].values()
    assert found.locator("tr:not(.part)").count() == len(output["lines"]) > 10
    yield found
    assert loaded.errors == []


@pytest.mark.on_every_page
def test_the_report_is_a_table_that_can_be_read(loaded, table):
    shot(loaded, "doctor")
    assert table.bounding_box()["width"] >= 480, "at a zoom of 100 %"
    assert table.evaluate(CUT_OFF) == []
    node = loaded.locator(".mmdiff-doctor").bounding_box()
    assert node["height"] <= 700, "what is longer scrolls"
    loaded.evaluate("(output) => nodes.doctor.onExecuted(output)", EXAMPLE)
    loaded.wait_for_timeout(200)
    assert table.locator("tr.part").all_inner_texts() == ["Base models", "Folders", "Versions"]
    assert table.evaluate(BADGES) == [
        ["missing", "rgb(198, 40, 40)", "rgb(255, 255, 255)"],
        ["note", "rgb(163, 82, 0)", "rgb(255, 255, 255)"],
        ["ok", "rgb(46, 125, 50)", "rgb(255, 255, 255)"],
    ]
    assert table.evaluate(CUT_OFF) == [] and "<b>SDXL</b> from" in table.inner_text()
    shot(loaded, "doctor_example")


def test_a_link_of_the_report_opens_and_its_text_is_copied(loaded, page_server, table):
    address = f"{page_server.url}/system_stats"
    line = {"state": "note", "part": "A", "text": f"see {address}, twice"}
    loaded.evaluate("(output) => nodes.doctor.onExecuted(output)", EXAMPLE | {"lines": [line]})
    with loaded.context.expect_page() as opened:
        table.get_by_role("link", name=address, exact=True).click()
    opened.value.wait_for_url(address)
    opened.value.close()
    loaded.bring_to_front()
    loaded.context.grant_permissions(["clipboard-read", "clipboard-write"])
    loaded.locator(".mmdiff-doctor").get_by_role("button", name="Copy").click()
    loaded.locator(".mmdiff-doctor").get_by_role("button", name="Copied").wait_for()
    assert loaded.evaluate("() => navigator.clipboard.readText()") == EXAMPLE["text"][0]


# ---------------------------------------------------------------- ComfyUI's list of missing models

SETTING = "Comfy.Workflow.ShowMissingModelsWarning"
OURS = ("portrait_generation/*.bin", "models/buffalo_l/*.onnx")
OTHERS = ("sd_xl_base_1.0.safetensors", "clip-vit-large-patch14.safetensors")
# what the page sends and saves of the loader
LOADER = """async () => {
  const node = app.graph.nodes.find((n) => n.type === 'MMDiffLoad');
  const sent = (await app.graphToPrompt()).output[node.id].inputs;
  const graph = app.graph.serialize();
  return [sent, node.serialize().widgets_values, graph.models ?? null, node.computeSize()[1]];
}"""
CHOOSE = """([kind, value]) => {
  const node = app.graph.nodes.find((n) => n.type === kind), widget = node.widgets[0];
  widget.value = value;
  widget.callback?.(value);
}"""


def bundled(models: bool = True, **values: str) -> dict:
    """The bundled portrait graph, with these first values of loaders."""
    text = (PACK / "workflows/11 One person.json").read_text(encoding="utf-8")
    graph = json.loads(text)
    for node in graph["nodes"]:
        if node["type"] in values:
            node["widgets_values"][0] = values[node["type"]]
        if not models:
            node["properties"].pop("models", None)
    return graph


class Asked:
    """The list of missing models: a dialog, or in newer frontends a part of the right panel."""

    def __init__(self, page):
        self.page, self.panel = page, page.get_by_test_id("properties-panel")

    def opens(self, graph: dict) -> None:
        self.page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
        self.page.wait_for_timeout(1000)
        self.look()

    def look(self) -> None:
        """Turn to the part of the right panel, where there is one."""
        details = self.page.get_by_test_id("error-overlay-see-errors")
        if details.count():
            details.click()
            self.page.wait_for_timeout(300)

    def lists(self, *names: str) -> bool:
        return all(name in self.text for name in names)

    def will_list(self, *names: str) -> bool:
        """The same within 30 seconds: the page asks the server first."""
        until = time.monotonic() + 30
        while not self.lists(*names) and time.monotonic() < until:
            self.page.wait_for_timeout(200)
            self.look()
        return self.lists(*names)

    @property
    def text(self) -> str:
        return self.page.evaluate(
            "() => [...document.querySelectorAll('.comfy-missing-models, "
            "[data-testid=properties-panel]')].map((e) => e.textContent).join()"
        )

    def says(self, node: str) -> str:
        """What the page says of a node of which the host refused an input."""
        dialog = self.page.locator(".p-dialog:has-text('failed validation')")
        if dialog.count():
            return dialog.inner_text()
        row = self.page.locator(f"li:has-text('{node} - ')").last
        row.locator("button[aria-expanded]").click()
        self.page.wait_for_timeout(200)
        return self.panel.inner_text()


@pytest.fixture
def asked(loaded):
    change = "async ([key, on]) => { await app.extensionManager.setting.set(key, on); }"
    loaded.evaluate(change, [SETTING, True])
    loaded.errors.clear()
    yield Asked(loaded)
    loaded.keyboard.press("Escape")
    loaded.evaluate(change, [SETTING, False])
    assert loaded.errors == []


@pytest.mark.on_every_page
def test_the_missing_models_of_a_bundled_graph_are_listed_the_folders_too(asked, loaded):
    asked.opens(bundled())
    assert asked.will_list(*OTHERS, *OURS), asked.text
    shot(loaded, "missing_models")
    sent, saved, models, height = loaded.evaluate(LOADER)
    assert (sent, saved, models) == (
        {"checkpoint": "portrait_generation"},
        ["portrait_generation"],
        None,
    ), "nothing of the list is sent or saved"
    assert height < 70, "and nothing takes room on the node"


def test_what_is_there_is_not_listed(asked):
    there = {"MMDiffLoad": "tiny-portrait", "MMDiffLoadFaceAnalysis": "discs"}
    asked.opens(bundled(models=False, **there))
    assert not asked.lists(OURS[0]) and not asked.lists(OURS[1])


def test_a_run_says_which_file_belongs_where_and_choosing_another_one_takes_it_off(asked, loaded):
    asked.opens(bundled(models=False))
    loaded.keyboard.press("Escape")
    loaded.evaluate("() => { app.queuePrompt(0); }")
    loaded.locator(".p-dialog:has-text('failed validation')").or_(
        loaded.get_by_test_id("error-overlay-see-errors")
    ).or_(loaded.get_by_text("Load MM-Diff - checkpoint")).first.wait_for()
    loaded.wait_for_timeout(500)
    asked.look()
    shot(loaded, "refused")
    said = asked.says("Load MM-Diff")
    assert SOURCES["mmdiff"].page in said and "models/mmdiff/portrait_generation/" in said
    assert SOURCES["insightface"].page in asked.says("Load Face Analysis")
    if asked.panel.count():
        loaded.evaluate(CHOOSE, ["MMDiffLoad", "tiny-portrait"])
        loaded.wait_for_timeout(300)
        assert not asked.lists(OURS[0]) and asked.lists(OURS[1])
