"""The table on MM-Diff Doctor."""

from __future__ import annotations

import pytest

from support.page import run_and_wait, shot
from support.page_graphs import EMPTY

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
