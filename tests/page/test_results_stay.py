"""What a run showed on its nodes is there again when the server answers from its cache."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from page.conftest import RENDERERS, opened

from support.page import Editor, open_page, run_and_wait, shot
from support.page_picker import TWO, Picker, draw_faces

# A prompt for both subjects of the portrait graph
PROMPT = """() => {
  const add = (kind, x, y) => {
    const node = LiteGraph.createNode(kind);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  const into = (node, name) => node.inputs.findIndex((i) => i.name === name);
  nodes.text = add("MMDiffTextEncode", 1200, 0);
  const text = "a man<|Ann|> and a man<|Ben|> in the snow";
  nodes.text.widgets.find((w) => w.name === "text").value = text;
  nodes.tiny.connect(1, nodes.text, into(nodes.text, "clip"));
  nodes.mmdiff.connect(0, nodes.text, into(nodes.text, "mmdiff"));
  nodes.masks.connect(0, nodes.text, into(nodes.text, "subjects"));
  nodes.words = add("PreviewAny", 1200, 500);
  nodes.text.connect(2, nodes.words, into(nodes.words, "source"));
}"""

# What the page shows: faces, images of the encoder and the masks, notes, bound words and colours
SEEN = """(ids) => {
  const shown = (id) => {
    const node = app.graph.getNodeById(id);
    const drawn = [...document.querySelectorAll(`[data-node-id="${id}"] img`)];
    const images = [...(node.imgs ?? []), ...drawn].map((i) => i.src);
    return images.some((src) => src.includes("/view?") && src.includes("type=temp"));
  };
  const texts = [...document.querySelectorAll(".mmdiff-text")];
  const visible = texts.filter((e) => e.checkVisibility());
  const words = [...document.querySelectorAll(".mmdiff-text b")];
  return {
    faces: document.querySelectorAll(".mmdiff-faces .face").length,
    used: document.querySelectorAll(".mmdiff-faces .face.used").length,
    images: ids.map(shown),
    words: words.map((word) => [word.textContent, word.style.color]),
    texts: visible.map((e) => e.textContent).filter((text) => text).sort(),
  };
}"""


def seen(page) -> dict:
    return page.evaluate(SEEN, page.evaluate("window.ids"))


def seen_when(page, holds: Callable[[dict], bool]) -> dict:
    """What is seen as soon as that holds, or after ten seconds: images take a while to load."""
    until = time.monotonic() + 10
    while not holds(found := seen(page)) and time.monotonic() < until:
        page.wait_for_timeout(100)
    return found


def open_anew(page, server) -> None:
    """Reload the page and open the same graph."""
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    ids = page.evaluate("[nodes.ann.id, nodes.ben.id, nodes.masks.id]")
    open_page(page, server)
    page.evaluate("(saved) => app.loadGraphData(JSON.parse(saved))", saved)
    page.evaluate("(ids) => { window.ids = ids; app.canvas.ds.scale = 0.6; }", ids)
    page.evaluate("app.canvas.ds.offset = [900, 130]")
    page.locator(".mmdiff-boxes").first.wait_for()
    page.wait_for_timeout(500)


@pytest.fixture(scope="module", params=RENDERERS)
def loaded(request, chromium, page_server, tmp_path_factory):
    """A page of its own: what other files' pages keep in the browser would come back with a
    reload."""
    with opened(chromium, page_server, request.param, tmp_path_factory.mktemp("shots")) as page:
        yield page


# The open graph's prompt, queued as if from another workflow of this page
FROM_ANOTHER_WORKFLOW = """async () => {
  const { output } = await app.graphToPrompt();
  const extra = { extra_pnginfo: { workflow: { id: "another workflow" } } };
  const asked = { client_id: api.clientId, prompt: output, extra_data: extra };
  await api.fetchApi("/prompt", { method: "POST", body: JSON.stringify(asked) });
}""".replace("api.", "app.api.")


def sends_cached_results(server) -> bool:
    """Whether the host itself tells the page what cached nodes show, and so for which graph."""
    told = server.get("/object_info/MMDiffSubjectEncoder")["MMDiffSubjectEncoder"]
    return bool(told.get("has_intermediate_output"))


@pytest.mark.on_every_page
def test_after_a_reload_a_run_from_the_cache_shows_all_that_the_first_run_showed(page, page_server):
    picker = Picker(page, page_server, draw_faces(page_server, "two", TWO))
    page.evaluate(PROMPT)
    page.evaluate("() => { window.ids = [nodes.ann.id, nodes.ben.id, nodes.masks.id]; }")
    picker.run()
    page.wait_for_timeout(300)
    first = seen_when(page, lambda found: all(found["images"]))
    assert first["faces"] == 4 and first["used"] == 2 and all(first["images"])
    assert len(first["words"]) == 2 and len({colour for _, colour in first["words"]}) == 2
    assert len(first["texts"]) >= 2, "the bindings, and notes about the references"
    open_anew(page, page_server)
    assert seen(page)["faces"] == 0 and seen(page)["words"] == []
    ran = set(page_server.get("/history"))
    page.evaluate(FROM_ANOTHER_WORKFLOW)
    page.wait_for_timeout(1500)
    assert set(page_server.get("/history")) - ran
    if not sends_cached_results(page_server):
        assert seen(page)["faces"] == 0, "the results of another workflow are not shown in this one"
    entry = run_and_wait(page, page_server)
    kinds = {item[0]: item[1] for item in entry["status"]["messages"]}
    assert set(map(str, page.evaluate("window.ids"))) <= set(kinds["execution_cached"]["nodes"])
    page.wait_for_timeout(700)
    shot(page, "from_the_cache")
    assert seen_when(page, lambda found: found == first) == first


def test_results_are_there_again_after_another_tab_and_after_undo(page, page_server):
    run_and_wait(page, page_server)
    page.locator(".mmdiff-text b").nth(1).wait_for()
    words = page.locator(".mmdiff-text b").all_inner_texts()
    editor = Editor(page)
    editor.draw_both()
    page.keyboard.press("Control+z")
    page.wait_for_function("document.querySelectorAll('.mmdiff-boxes .box').length === 1")
    page.wait_for_timeout(300)
    assert page.locator(".mmdiff-text b").all_inner_texts() == words
    key = page.evaluate("app.extensionManager.workflow.activeWorkflow.filename")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function(
        "(key) => app.extensionManager.workflow.activeWorkflow.filename !== key", arg=key
    )
    page.wait_for_timeout(300)
    assert page.locator(".mmdiff-text b").count() == 0
    page.locator(".workflow-tabs").get_by_text(key, exact=True).click()
    page.locator(".mmdiff-text b").nth(1).wait_for()
    assert page.locator(".mmdiff-text b").all_inner_texts() == words
