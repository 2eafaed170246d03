"""Draw the image of every bundled graph for the gallery, by running the graph.

    COMFYUI_PATH=/path/to/ComfyUI python tests/tools/thumbnails.py [NAME ...]

A graph of the small world runs as it is; one that needs SDXL is shown by its twin there. "small
world" is written into every image. Run it again after new weights of the small world.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from PIL import Image, ImageDraw, ImageEnhance, ImageFont  # noqa: E402

from support.paths import PACK  # noqa: E402
from support.server import Server  # noqa: E402
from support.workflows import WORKFLOWS, load, to_api  # noqa: E402

SIDE = 512
INNER = 448  # side of the image above the words
MOST = 60_000  # bytes
WORDS = "small world"


@dataclass(frozen=True)
class Twin:
    """A graph of the small world that stands for another one, with other values of some nodes."""

    graph: str
    changed: dict[str, dict] = field(default_factory=dict)


def seeded(seed: int, **text: str) -> dict[str, dict]:
    return {"KSampler": {"seed": seed}} | ({"MMDiffTextEncode": text} if text else {})


ONE, TWO = "02 One subject, small world", "01 Two subjects, small world"
BEST = "09 Best two of eight, small world"
FOUR = {"EmptyLatentImage": {"batch_size": 4}}
TWINS = {
    "11 One person": Twin(ONE, seeded(3, text="a cat<|violet|> on the beach")),
    "12 One person, several photos": Twin("03 Several references, small world", seeded(4)),
    "10 Two people": Twin(TWO, seeded(14)),
    "14 Two people in boxes": Twin("05 Boxes, small world", seeded(2)),
    "13 Three people": Twin("04 Three subjects, small world", seeded(6)),
    "16 Mixed person": Twin("07 Mixed subject, small world", seeded(7)),
    "22 Animal or thing": Twin(ONE, seeded(8, text="a cat<|violet|> in the forest")),
    "17 With ControlNet": Twin(ONE, seeded(9, text="a cat<|violet|> in the city")),
    "18 With a style LoRA": Twin(ONE, seeded(10, text="a cat<|violet|> in a cave")),
    "21 Delayed conditioning": Twin(ONE, seeded(11, text="a cat<|violet|> at night")),
    BEST: Twin(BEST, FOUR),
    "15 Two people, best two of eight": Twin(BEST, FOUR | seeded(15)),
    "19 Save subjects": Twin(TWO, seeded(12)),
    "20 Load saved subjects": Twin(TWO, seeded(13)),
}


def prompt_of(name: str, info: dict) -> dict:
    """The API graph that draws the image of a bundled graph: one image, its own settings else."""
    twin = TWINS.get(name, Twin(name))
    prompt = to_api(load(PACK / f"workflows/{twin.graph}.json"), info, {})
    for kind, values in ({"EmptyLatentImage": {"batch_size": 1}} | twin.changed).items():
        for node in prompt.values():
            if node["class_type"] == kind:
                node["inputs"] |= values
    return prompt


def drawn(server: Server, prompt: dict) -> Image.Image:
    """The image that the graph saves; of one that shows attention maps those as well; of one that
    picks the best, all of them."""
    outputs = server.run(prompt)["outputs"]
    for key, node in prompt.items():
        if node["class_type"] == "MMDiffPickBest":
            found = [opened(server, image) for image in outputs[key]["images"]]
            return grid(dimmed(found, node["inputs"]["keep"]))
    wanted = [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]
    wanted += [key for key, node in prompt.items() if node["class_type"] == "MMDiffAttentionMaps"]
    found = [opened(server, image) for key in wanted for image in outputs[key]["images"]]
    return found[0] if len(found) == 1 else grid(found)


def opened(server: Server, image: dict) -> Image.Image:
    folder = server.output if image["type"] == "output" else server.home / "temp/temp"
    with Image.open(folder / image["subfolder"] / image["filename"]) as picture:
        return picture.convert("RGB")


def dimmed(images: list[Image.Image], keep: int) -> list[Image.Image]:
    """Ranked images without the words below them, darker from number `keep` on."""
    squares = [image.crop((0, 0, image.width, image.width)) for image in images]
    return [
        *squares[:keep],
        *(ImageEnhance.Brightness(each).enhance(0.35) for each in squares[keep:]),
    ]


def grid(images: list[Image.Image]) -> Image.Image:
    """Up to four images as the quarters of one."""
    half = SIDE // 2
    whole = Image.new("RGB", (SIDE, SIDE))
    for number, image in enumerate(images[:4]):
        place = (number % 2 * half, number // 2 * half)
        whole.paste(image.resize((half, half), Image.Resampling.NEAREST), place)
    return whole


def with_words(image: Image.Image, words: str) -> Image.Image:
    """The image on a dark ground, with the words that say what drew it below."""
    whole = Image.new("RGB", (SIDE, SIDE), "#16161c")
    whole.paste(image.resize((INNER, INNER), Image.Resampling.NEAREST), ((SIDE - INNER) // 2, 0))
    middle = (SIDE // 2, (SIDE + INNER) // 2)
    font = ImageFont.load_default(26)
    ImageDraw.Draw(whole).text(middle, words, fill="white", anchor="mm", font=font)
    return whole


def as_jpeg(image: Image.Image) -> bytes:
    """At the best quality that fits."""
    for quality in range(92, 30, -6):
        held = io.BytesIO()
        image.save(held, "JPEG", quality=quality, optimize=True, progressive=True)
        if held.tell() <= MOST:
            break
    return held.getvalue()


def main(names: list[str]) -> None:
    home = Path(tempfile.mkdtemp())
    server = Server(home)
    try:
        info = server.get("/object_info")
        for name in names or [path.stem for path in WORKFLOWS]:
            image = with_words(drawn(server, prompt_of(name, info)), WORDS)
            (PACK / f"workflows/{name}.jpg").write_bytes(as_jpeg(image))
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
