"""Images dropped on the page reach a subject."""

from __future__ import annotations

import base64

import pytest

from support.page_graphs import FIND
from support.paths import PACK

DROP = """async ([text, name, x, y]) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const held = new DataTransfer();
  held.items.add(new File([bytes], name, { type: "image/jpeg" }));
  const [area, { scale, offset }] = [app.canvas.canvas.getBoundingClientRect(), app.canvas.ds];
  const [left, top] = [area.x + (x + offset[0]) * scale, area.y + (y + offset[1]) * scale];
  const at = { clientX: left, clientY: top };
  const target = document.elementFromPoint(left, top) ?? app.canvas.canvas;
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const options = { dataTransfer: held, bubbles: true, cancelable: true, ...at };
    target.dispatchEvent(new DragEvent(kind, options));
    await new Promise((then) => setTimeout(then, 50));
  }
}"""
LINKED = f"""() => {{
  const node = {FIND}('MMDiffSubjectEncoder');
  const slot = node.inputs.findIndex((input) => input.name === 'image');
  const into = (link) => link.target_slot === slot && String(link.target_id) === String(node.id);
  const link = [...app.graph.links.values()].find(into);
  if (!link) return null;
  const loader = app.graph.getNodeById(link.origin_id);
  return loader.comfyClass === 'LoadImage' && loader.widgets[0].value;
}}"""


def drop(page, x: float, y: float) -> None:
    photo = PACK / "web/photos/grace_hopper.jpg"
    held = base64.b64encode(photo.read_bytes()).decode()
    page.evaluate(DROP, [held, f"dropped-{x}.jpg", x, y])


def in_view(page) -> None:
    """Bring the encoders, which are built far to the left, into the window."""
    page.evaluate("() => { app.canvas.ds.offset = [900, 130]; app.canvas.setDirty(true, true); }")
    page.wait_for_timeout(400)


@pytest.mark.on_every_page
def test_an_image_dropped_on_an_encoder_becomes_its_image(page):
    in_view(page)
    drop(page, -380, 150)
    page.wait_for_function(f"() => String(({LINKED})()).startsWith('dropped--380')")


def test_an_image_dropped_beside_an_encoder_without_one_is_connected_to_it(page):
    """By newer pages, which make a Load Image node of it; the older one says that it is none."""
    in_view(page)
    page.evaluate("""() => {
      const free = nodes.subject0;
      free.disconnectInput(free.inputs.findIndex((input) => input.name === "image"));
    }""")
    assert page.evaluate(LINKED) is None
    drop(page, 130, 800)
    if page.evaluate("() => __COMFYUI_FRONTEND_VERSION__").startswith("1.32."):
        page.wait_for_timeout(1000)
        assert page.evaluate(LINKED) is None
        return
    page.wait_for_function(f"() => String(({LINKED})()).startsWith('dropped-130')")


def test_an_image_dropped_where_every_encoder_has_one_changes_none(page):
    in_view(page)
    before = page.evaluate(LINKED)
    drop(page, 140, 800)
    page.wait_for_timeout(1200)
    assert page.evaluate(LINKED) == before
