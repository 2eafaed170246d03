"""Makes the pictures of the help pages and the README anew, run when named: every node as it looks in ComfyUI after a real run.

    COMFYUI_PATH=/path/to/ComfyUI python tests/tools/node_pictures.py [NODE_ID ...]

Needs Chromium and playwright as the tests of the page do. Graphs run on the small world, and on the tiny portrait model with a stand-in for the
face detector. Writes web/docs/pictures/NODE_ID.jpg and web/pictures/given.jpg, drawn.jpg, where.jpg.
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
    "MMDiffConstraintMasks": (340, 860),
    "MMDiffAttentionMaps": (340, 360),
    "MMDiffDoctor": (460, 330),
    "MMDiffSaveSubject": (360, 150),
    "MMDiffSmallWorldSprite": (270, 230),
    "MMDiffLoadSubject": (330, 250),
    "MMDiffFindFaces": (300, 370),
}

GRAPH = (
    """async () => {"""
    + EMPTY
    + """
  const column = (i) => i * 600;
  add("world", "MMDiffSmallWorldLoader", column(0), 0);
  add("sprite0", "MMDiffSmallWorldSprite", column(1), 0,
      { kind: "ghost", first_colour: 0.74, second_colour: 0.17, pattern: "stripes", eyes: "white", accessory: "crown", references: 1 });
  add("sprite1", "MMDiffSmallWorldSprite", column(1), 900,
      { kind: "ghost", first_colour: 0.5, second_colour: 0.84, pattern: "bars", eyes: "dark", accessory: "bow", references: 1 });
  for (const [i, name] of ["Violet", "Teal"].entries()) {
    add(`subject${i}`, "MMDiffSubjectEncoder", column(2), i * 900, { name });
    link("world", 4, `subject${i}`, "mmdiff");
    link("world", 3, `subject${i}`, "clip_vision");
    link(`sprite${i}`, 0, `subject${i}`, "image");
  }
  link("subject0", 0, "subject1", "subjects");
  add("save", "MMDiffSaveSubject", column(3), 0, { prefix: "help/", overwrite: true });
  link("subject1", 0, "save", "subjects");
  add("weights", "MMDiffSubjectWeights", column(3), 600, { name: "Teal", weight: 1.0 });
  link("save", 0, "weights", "subjects");
  add("mix", "MMDiffMixSubjects", column(3), 1200, { weights: "0.7, 0.3" });
  link("subject1", 0, "mix", "subjects");
  add("masks", "MMDiffConstraintMasks", column(4), 0, { width: 128, height: 128, boxes: JSON.stringify([
    { subject: 1, x: 0.04, y: 0.3, width: 0.4, height: 0.62 }, { subject: 2, x: 0.56, y: 0.3, width: 0.4, height: 0.62 }]) });
  link("weights", 0, "masks", "subjects");
  add("find", "MMDiffFindRegions", column(4), 1400);
  link("weights", 0, "find", "subjects");
  add("text", "MMDiffTextEncode", column(5), 0, { text: "a ghost<|violet|> and a ghost<|teal|> on the beach", negative: "" });
  link("weights", 0, "text", "subjects");
  link("world", 1, "text", "clip");
  link("world", 4, "text", "mmdiff");
  add("apply", "MMDiffApplyAttention", column(5), 900, { fuse_scale: 1.0 });
  link("world", 0, "apply", "model");
  link("world", 4, "apply", "mmdiff");
  add("watch", "MMDiffWatchAttention", column(5), 1500, { live: true });
  link("apply", 0, "watch", "model");
  add("latent", "EmptyLatentImage", column(6), 0, { width: 128, height: 128 });
  add("sample", "KSampler", column(6), 300,
      { seed: 1, control_after_generate: "fixed", steps: 20, cfg: 3, sampler_name: "dpmpp_2m", scheduler: "sgm_uniform" });
  link("watch", 0, "sample", "model");
  link("text", 0, "sample", "positive");
  link("text", 1, "sample", "negative");
  link("latent", 0, "sample", "latent_image");
  add("decode", "VAEDecode", column(6), 800);
  link("sample", 0, "decode", "samples");
  link("world", 2, "decode", "vae");
  add("maps", "MMDiffAttentionMaps", column(7), 0);
  link("watch", 1, "maps", "maps");
  link("decode", 0, "maps", "image");
  add("given0", "PreviewImage", column(8), 1200);
  link("sprite0", 0, "given0", "images");
  add("given1", "PreviewImage", column(8), 1800);
  link("sprite1", 0, "given1", "images");
  add("drawn", "PreviewImage", column(8), 2400);
  link("decode", 0, "drawn", "images");
  add("strip", "PreviewImage", column(8), 0);
  link("maps", 2, "strip", "images");
  add("regions", "PreviewImage", column(8), 600);
  link("masks", 1, "regions", "images");
  add("doctor", "MMDiffDoctor", column(9), 0);
}"""
)

PORTRAIT = (
    """async (photos) => {"""
    + EMPTY
    + """
  add("load", "MMDiffLoad", 0, 0, { checkpoint: "tiny-portrait" });
  add("faces", "MMDiffLoadFaceAnalysis", 0, 400, { model: "stand_in", device: "cpu" });
  add("photo", "LoadImage", 600, 0, { image: photos[1] });
  add("find", "MMDiffFindFaces", 1200, 0);
  link("photo", 0, "find", "image");
  link("faces", 0, "find", "faces");
  add("show", "PreviewImage", 1200, 700);
  link("find", 0, "show", "images");
  add("convert", "MMDiffConvert", 1800, 0);
  nodes.convert.mode = 2;      // shown, not run
  add("world", "MMDiffSmallWorldLoader", 1800, 400);
  add("subject", "MMDiffLoadSubject", 2400, 0, { file: "help/Violet.safetensors" });
  link("world", 4, "subject", "mmdiff");
  add("seen", "PreviewImage", 2400, 600);
  link("subject", 1, "seen", "images");
}"""
)

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
    "MMDiffDoctor": (GRAPH, "doctor"),
    "MMDiffLoad": (PORTRAIT, "load"),
    "MMDiffLoadFaceAnalysis": (PORTRAIT, "faces"),
    "MMDiffFindFaces": (PORTRAIT, "find"),
    "MMDiffConvert": (PORTRAIT, "convert"),
    "MMDiffLoadSubject": (PORTRAIT, "subject"),
}


def run(page: Page) -> None:
    """Queue the graph of the page, wait for it, and give every node the room it asks for."""
    page.evaluate(
        "async () => { window.done = new Promise((end) => app.api.addEventListener('execution_success', () => end('ok'), { once: true })); "
        "window.bad = new Promise((end) => app.api.addEventListener('execution_error', (e) => end(JSON.stringify(e.detail)), { once: true })); "
        "await app.queuePrompt(0); }"
    )
    said = page.evaluate("() => Promise.race([window.done, window.bad])")
    if said != "ok":
        sys.exit(f"the graph failed: {said[:2000]}")
    page.wait_for_timeout(1500)


def take(page: Page, name: str, size: tuple[int, int] | None) -> Image.Image:
    """The node alone, with a little of the canvas round it."""
    box = page.evaluate(
        """async ([name, size]) => {
      const node = nodes[name];
      const least = node.computeSize();
      if (size) node.setSize([Math.max(size[0], least[0]), Math.max(size[1], least[1])]);
      app.canvas.deselectAll();
      app.canvas.ds.scale = 1;
      app.canvas.ds.offset = [400 - node.pos[0], 160 - node.pos[1]];
      app.canvas.setDirty(true, true);
      await new Promise((r) => setTimeout(r, 600));
      const area = app.canvas.canvas.getBoundingClientRect();
      return { x: area.x + 400, y: area.y + 160 - LiteGraph.NODE_TITLE_HEIGHT, width: node.size[0], height: node.size[1] + LiteGraph.NODE_TITLE_HEIGHT };
    }""",
        [name, size],
    )
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


def main(names: list[str]) -> None:
    wanted = {name: NODES[name] for name in names or NODES}
    home = Path(tempfile.mkdtemp())
    server = Server(home)
    try:
        photos = [server.upload(p) for p in sorted((PACK / "web/photos").glob("*.jpg"))]
        settings = json.dumps(
            {
                **QUIET,
                "Comfy.VueNodes.Enabled": False,
                "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
            }
        ).encode()
        with (
            urllib.request.urlopen(
                urllib.request.Request(
                    f"{server.url}/api/settings", settings, {"Content-Type": "application/json"}
                )
            ),
            sync_playwright() as started,
        ):
            opened = started.chromium.launch(executable_path=browser(), args=list(FLAGS))
            page = opened.new_page(
                viewport={"width": 1500, "height": 1300}, device_scale_factor=SCALE
            )
            page.goto(server.url)
            page.wait_for_function(
                "() => !!(window.app?.graph && LiteGraph.registered_node_types.MMDiffTextEncode)",
                timeout=60_000,
            )
            page.wait_for_timeout(1500)
            for graph in (GRAPH, PORTRAIT):
                mine = {name: node for name, (g, node) in wanted.items() if g is graph}
                page.evaluate(graph, photos)
                page.wait_for_timeout(800)
                run(page)
                page.evaluate("() => { if (nodes.convert) nodes.convert.mode = 0; }")
                if graph is GRAPH:
                    if not names:
                        save_for_readme(page, server)
                    page.evaluate(
                        "() => { nodes.sprite0.widgets.find((w) => w.name === 'references').value = 3; }"
                    )
                    run(page)
                for name, node in mine.items():
                    save(take(page, node, SIZES.get(name)), PICTURES / f"{name}.jpg")
            opened.close()
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
