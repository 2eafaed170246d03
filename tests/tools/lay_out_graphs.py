"""Lay out the bundled graphs anew: from the columns in graphs/table.py and the heights that nodes
have in real pages, classic and Nodes 2.0.

    COMFYUI_PATH=/path/to/ComfyUI python tests/tools/lay_out_graphs.py [--shots FOLDER] [NAME ...]

Needs Chromium and playwright, as the tests of the page do, and the newest frontend in
MMDIFF_NEWEST_FRONTEND. Only positions, sizes and the view change; run it after every change of a
graph, of its note, or of a node's widgets. --shots writes an image of each graph in both renderers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(Path(__file__).parent)]

from graphs.layout import lay_out  # noqa: E402
from graphs.measuring import RENDERERS, heights, least_heights, opened, show  # noqa: E402
from graphs.table import LAYOUTS  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from support.page import NEWEST  # noqa: E402
from support.paths import PACK  # noqa: E402
from support.server import Server  # noqa: E402


def path_of(name: str) -> Path:
    return PACK / "workflows" / f"{name}.json"


def read(name: str) -> dict:
    return json.loads(path_of(name).read_text(encoding="utf-8"))


def write(name: str, graph: dict) -> None:
    text = json.dumps(graph, indent=1, ensure_ascii=False)
    path_of(name).write_text(text + "\n", encoding="utf-8")


def measure(playwright, server, graphs: dict[str, dict]) -> dict[str, dict[str, dict[str, int]]]:
    """Renderer -> graph -> node -> least height."""
    found = {}
    for renderer in RENDERERS:
        with opened(playwright, server, renderer) as page:
            found[renderer] = {
                name: least_heights(page, graph, LAYOUTS[name]) for name, graph in graphs.items()
            }
    return found


def lay_out_all(playwright, server, chosen: list[str], shots: Path | None) -> None:
    graphs = {name: read(name) for name in chosen}
    found = measure(playwright, server, graphs)
    for name, graph in graphs.items():
        newer = [found[renderer][name] for renderer in RENDERERS if renderer != "classic"]
        lay_out(graph, LAYOUTS[name], heights(found["classic"][name], newer))
        write(name, graph)
    if shots is not None:
        shots.mkdir(parents=True, exist_ok=True)
        for renderer in RENDERERS:
            with opened(playwright, server, renderer) as page:
                for name, graph in graphs.items():
                    show(page, graph, shots / f"{name}.{renderer.replace(' ', '_')}.png")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shots", type=Path)
    parser.add_argument("names", nargs="*", choices=[[], *LAYOUTS], metavar="NAME")
    asked = parser.parse_args(arguments)
    home = Path(tempfile.mkdtemp())
    server = Server(home, "--front-end-root", os.environ[NEWEST])
    try:
        for photo in (PACK / "web/photos").glob("*.jpg"):
            server.upload(photo)
        with sync_playwright() as started:
            lay_out_all(started, server, asked.names or list(LAYOUTS), asked.shots)
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
