"""Make the images of the help pages and the README: every node as it looks after a real run.

    COMFYUI_PATH=/path/to/ComfyUI python tests/tools/node_pictures.py [NODE_ID ...]

Needs Chromium and playwright, as the tests of the page do. The graphs run on the small world, and
on the tiny portrait model with a stand-in for the face detector. Writes given.jpg, drawn.jpg and
where.jpg in web/pictures, and web/docs/pictures/NODE_ID.jpg.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from PIL import Image  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

from support.doctor_example import OUTPUT  # noqa: E402
from support.page import FLAGS, QUIET, browser  # noqa: E402
from support.page_graphs import EMPTY  # noqa: E402
from support.paths import PACK  # noqa: E402
from support.server import Server  # noqa: E402

PICTURES = PACK / "web/docs/pictures"
README = PACK / "web/pictures"
SIDE = 320  # of a picture in the README
MOST = 60_000  # bytes
SCALE = 1.5  # device pixels per pixel of the page
EDGE = 14  # pixels round the node

SIZES = {  # of nodes that are better read a little larger than they begin
    "MMDiffTextEncode": (420, 330),
    "MMDiffConstraintMasks": (340, 930),
    "MMDiffAttentionMaps": (340, 360),
    "MMDiffLikeness": (420, 700),
    "MMDiffPickBest": (420, 680),
    "MMDiffDoctor": (580, 300),
    "MMDiffSaveSubject": (360, 150),
    "MMDiffSmallWorldSprite": (270, 230),
    "MMDiffLoadSubject": (330, 250),
    "MMDiffFindFaces": (300, 370),
}

ALL_ON = "() => { for (const node of Object.values(nodes)) node.mode = 0; }"
THREE_REFERENCES = """() => {
  const widget = nodes.sprite0.widgets.find((w) => w.name === "references");
  widget.value = 3;
}"""


def script(name: str, parameters: str = "") -> str:
    """A graph's file as a function of the page, with `add` and `link` defined."""
    return f"async ({parameters}) => {{{EMPTY}{(SCRIPTS / name).read_text(encoding='utf-8')}}}"


SCRIPTS = Path(__file__).parent / "pictures"
GRAPH, PORTRAIT = script("graph.js"), script("portrait.js", "photos")
SHOW, QUEUE = ((SCRIPTS / f"{n}.js").read_text(encoding="utf-8") for n in ("show", "queue"))

NODES = {  # picture -> (graph, the node's short name there)
    "MMDiffSmallWorldLoader": (GRAPH, "world"),
    "MMDiffSmallWorldSprite": (GRAPH, "sprite0"),
    "MMDiffSubjectEncoder": (GRAPH, "subject0"),
    "MMDiffSaveSubject": (GRAPH, "save"),
    "MMDiffSubjectWeights": (GRAPH, "weights"),
    "MMDiffMixSubjects": (GRAPH, "mix"),
    "MMDiffConstraintMasks": (GRAPH, "masks"),
    "MMDiffFindRegions": (GRAPH, "find"),
    "MMDiffTextEncode": (GRAPH, "text"),
    "MMDiffApplyAttention": (GRAPH, "apply"),
    "MMDiffWatchAttention": (GRAPH, "watch"),
    "MMDiffAttentionMaps": (GRAPH, "maps"),
    "MMDiffLikeness": (GRAPH, "likeness"),
    "MMDiffPickBest": (GRAPH, "best"),
    "MMDiffDoctor": (GRAPH, "doctor"),
    "MMDiffLoad": (PORTRAIT, "load"),
    "MMDiffLoadModels": (PORTRAIT, "all"),
    "MMDiffLoadFaceAnalysis": (PORTRAIT, "faces"),
    "MMDiffFindFaces": (PORTRAIT, "find"),
    "MMDiffConvert": (PORTRAIT, "convert"),
    "MMDiffLoadSubject": (PORTRAIT, "subject"),
}


def run(page: Page) -> None:
    """Queue the graph of the page, wait for it, and give every node the room it asks for."""
    said = page.evaluate(QUEUE)
    if said != "ok":
        sys.exit(f"the graph failed: {said[:2000]}")
    page.wait_for_timeout(1500)


def take(page: Page, name: str, size: tuple[int, int] | None) -> Image.Image:
    """The node alone, with a little of the canvas round it."""
    box = page.evaluate(SHOW, [name, size])
    clip = {
        "x": box["x"] - EDGE,
        "y": box["y"] - EDGE,
        "width": box["width"] + 2 * EDGE,
        "height": box["height"] + 2 * EDGE,
    }
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def shown(page: Page, server: Server, node: str) -> list[Image.Image]:
    """What a node of the newest run shows, enlarged by whole dots where it is small."""
    entry = list(server.get("/history").values())[-1]
    found = []
    for image in entry["outputs"][str(page.evaluate("(name) => nodes[name].id", node))]["images"]:
        with (
            urllib.request.urlopen(f"{server.url}/view?{urllib.parse.urlencode(image)}") as answer,
            Image.open(answer) as opened,
        ):
            found.append(opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST))
    return found


def beside(pictures: list[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (len(pictures) * (SIDE + 8) - 8, SIDE), "white")
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * (SIDE + 8), 0))
    return row


def save_for_readme(page: Page, server: Server) -> None:
    """The two individuals (the first reference of each), the picture, and where each was read."""
    rows = {
        "given": [shown(page, server, f"given{i}")[0] for i in (0, 1)],
        "drawn": shown(page, server, "drawn"),
        "where": shown(page, server, "maps"),
    }
    for name, pictures in rows.items():
        save(beside(pictures), README / f"{name}.jpg")


def save(picture: Image.Image, path: Path) -> None:
    for quality in range(88, 30, -6):
        picture.save(path, quality=quality, optimize=True, progressive=True)
        if path.stat().st_size <= MOST:
            return


def wait_for_pack(page: Page, server: Server) -> None:
    """Open ComfyUI and wait for the pack's nodes."""
    page.goto(server.url)
    ready = "() => !!(window.app?.graph && LiteGraph.registered_node_types.MMDiffTextEncode)"
    page.wait_for_function(ready, timeout=60_000)
    page.wait_for_timeout(1500)


def use_plain_page(server: Server) -> None:
    """The classic renderer, without badges and questions."""
    plain = {"Comfy.VueNodes.Enabled": False, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
    settings = json.dumps(QUIET | plain).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/api/settings", settings, headers)
    urllib.request.urlopen(request).close()


def take_all(page: Page, server: Server, names: list[str]) -> None:
    """Run both graphs and save the images of the nodes, or of those that are named."""
    photos = [server.upload(p) for p in sorted((PACK / "web/photos").glob("*.jpg"))]
    for graph in (GRAPH, PORTRAIT):
        page.evaluate(graph, photos)
        page.wait_for_timeout(800)
        run(page)
        page.evaluate(ALL_ON)
        if graph is GRAPH:
            if not names:
                save_for_readme(page, server)
            page.evaluate(THREE_REFERENCES)
            run(page)
            page.evaluate(SHOW, ["doctor", None])  # what is out of sight has no height
            page.evaluate("(output) => nodes.doctor.onExecuted(output)", OUTPUT)
        for name in names or NODES:
            if NODES[name][0] is graph:
                image = take(page, NODES[name][1], SIZES.get(name))
                save(image, PICTURES / f"{name}.jpg")


def main(names: list[str]) -> None:
    """Start a server and a browser, and take the images."""
    home = Path(tempfile.mkdtemp())
    server = Server(home)
    try:
        use_plain_page(server)
        with sync_playwright() as started:
            opened = started.chromium.launch(executable_path=browser(), args=list(FLAGS))
            viewport = {"width": 1500, "height": 1300}
            page = opened.new_page(viewport=viewport, device_scale_factor=SCALE)
            wait_for_pack(page, server)
            take_all(page, server, names)
            opened.close()
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
