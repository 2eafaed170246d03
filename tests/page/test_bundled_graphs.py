"""The bundled graphs, opened and run in the page."""

from __future__ import annotations

import json
import time

import pytest

from support.page import run_and_wait, shot
from support.page_graphs import FIND
from support.paths import PACK

SHOWS_MAPS = f"""([node, file]) => {{
  if ({FIND}('MMDiffAttentionMaps').imgs?.length === 4) return true;
  const shown = [...document.querySelectorAll(`[data-node-id='${{node}}'] img`)];
  return shown.some((image) => image.src.includes(file));
}}"""


@pytest.mark.on_every_page
def test_the_bundled_graph_of_maps_shows_them_live_and_over_the_picture(page, page_server):
    graph = json.loads(
        (PACK / "workflows/08 Attention maps, small world.json").read_text(encoding="utf-8")
    )
    for node in graph["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][:3] = [int(time.time()), "fixed", 6]  # not cached
    # all of it in view: what is not is not drawn
    graph["extra"]["ds"]["scale"] = 0.3
    page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
    page.wait_for_timeout(300)
    entry = run_and_wait(page, page_server)
    page.wait_for_function(
        "() => document.querySelector('.mmdiff-live img')?.src.startsWith('data:image/png')"
    )
    assert page.locator(
        ".mmdiff-live"
    ).inner_text().strip() == "violet, teal (step 6 of 6)".replace("violet, teal", "Violet, Teal")
    assert page.locator(".mmdiff-live").evaluate(
        "(frame) => frame.scrollHeight <= frame.clientHeight"
    ), "the words below the maps are not cut off"
    (maps,) = (node["id"] for node in graph["nodes"] if node["type"] == "MMDiffAttentionMaps")
    files = [image["filename"] for image in entry["outputs"][str(maps)]["images"]]
    assert len(files) == 4
    # Nodes 2.0 may show one at a time
    page.wait_for_function(SHOWS_MAPS, arg=[maps, files[0]])
    page.wait_for_timeout(300)
    shot(page, "maps")


def test_a_bundled_graph_opens_with_its_photo_in_the_input_folder(page, page_server):
    photo = page_server.home / "input/grace_hopper.jpg"
    photo.unlink(missing_ok=True)
    page.evaluate("async () => { await app.refreshComboInNodes(); }")
    graph = json.loads((PACK / "workflows/14 Two people in boxes.json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        # the page asks about those that are missing, over everything else
        node["properties"].pop("models", None)
    page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
    page.wait_for_function("""() => {
      const offers = (w) => w.value === 'grace_hopper.jpg' && w.options.values.includes(w.value);
      const loads = app.graph.nodes.filter((n) => n.comfyClass === 'LoadImage');
      return loads.some((n) => offers(n.widgets[0]));
    }""")
    assert photo.read_bytes() == (PACK / "web/photos/grace_hopper.jpg").read_bytes()
    page.wait_for_timeout(700)
    # both boxes show their person: only the eye can tell that a background has loaded
    shot(page, "photos")
