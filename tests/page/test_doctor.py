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
BADGE = """(cell) => {
  const style = getComputedStyle(cell);
  return [cell.innerText, style.backgroundColor, style.color];
}"""


@pytest.fixture
def table(loaded, page_server):
    """The doctor's table after a run."""
    loaded.evaluate(ALONE)
    loaded.locator(".mmdiff-doctor").wait_for()
    assert "Run this node" in loaded.locator(".mmdiff-doctor .head").inner_text()
    loaded.errors.clear()
    run_and_wait(loaded, page_server)
    found = loaded.locator(".mmdiff-doctor table")
    found.locator("tr").first.wait_for()
    loaded.wait_for_timeout(300)
    yield found
    assert loaded.errors == []


def test_the_report_is_a_readable_table_whose_links_open_and_whose_text_is_copied(
    loaded, page_server, table
):
    shot(loaded, "doctor")
    box = table.bounding_box()
    assert box["width"] >= 480, "at the zoom of 100 %"
    assert table.evaluate(
        "(t) => [...t.querySelectorAll('td')].every((c) => c.scrollWidth <= c.clientWidth)"
    ), "no path is cut off"
    words = {tuple(cell.evaluate(BADGE)) for cell in table.locator(".state span").all()}
    assert {word for word, *_ in words} == {"ok", "note", "missing"} and len(words) == 3
    assert len({colour for _, colour, _ in words}) == 3
    assert table.locator("tr.part").first.inner_text() in ("Base models", "MM-Diff checkpoints")
    node = loaded.evaluate("[...nodes.doctor.size]")
    assert node[0] >= 480 and node[1] <= 800

    link = table.locator("a").first
    assert link.get_attribute("rel") == "noopener noreferrer"
    with loaded.context.expect_page() as opened:
        link.click()
    assert opened.value.url in (link.get_attribute("href"), "about:blank", ":")
    opened.value.close()

    loaded.context.grant_permissions(["clipboard-read", "clipboard-write"])
    loaded.locator(".mmdiff-doctor").get_by_role("button", name="Copy").click()
    loaded.locator(".mmdiff-doctor").get_by_role("button", name="Copied").wait_for()
    copied = loaded.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith("MM-Diff Doctor: ") and "\n  missing nothing there. Get " in copied
