"""The face picker of a subject's node, on pictures that are drawn for it."""

from __future__ import annotations

import time

from support.page import run_and_wait
from support.page_graphs import PORTRAIT

# the widget `face` of Ann's encoder
FACE = "app.graph.getNodeById(nodes.ann.id).widgets.find((w) => w.name === 'face')"
TWO, THREE = ((150, 260, 60), (620, 300, 110)), ((120, 200, 60), (460, 300, 100), (780, 400, 70))


def draw_faces(server, name: str, discs) -> str:
    """A picture of faces that the stand-in finds, new to the server each time."""
    from PIL import Image

    from support.faces import picture

    image = Image.fromarray(picture(*discs))
    name = f"{time.time_ns()}_{name}.png"
    image.save(server.home / "input" / name)
    return name


class Picker:
    """The face picker of a subject's node, as a person has it before them."""

    def __init__(self, page, server, *pictures: str):
        self.page, self.server = page, server
        page.evaluate(PORTRAIT, list(pictures))
        self.root = page.locator(".mmdiff-faces:visible").first
        self.faces, self.says, self.largest = (
            self.root.locator(".face"),
            self.root.locator(".says"),
            self.root.get_by_role("button", name="largest"),
        )

    def run(self) -> dict:
        """Queue the graph; what Ann's node was told, once the page shows it."""
        entry = run_and_wait(self.page, self.server)
        sent = entry["outputs"][str(self.page.evaluate("nodes.ann.id"))]
        self.page.wait_for_timeout(500)
        return sent

    @property
    def number(self) -> int:
        return self.page.evaluate(f"{FACE}.value")

    def marked(self, what: str) -> list[str]:
        return self.root.locator(f".face.{what} b").all_inner_texts()
