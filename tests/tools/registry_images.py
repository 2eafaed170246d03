"""The icon and the banner of the pack on the registry: python tests/tools/registry_images.py

Both are made of the images that the README shows, so they show real results.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

PACK = Path(__file__).resolve().parents[2]
PICTURES, ASSETS = PACK / "web/pictures", PACK / "docs/assets"
DOT = 10  # px of a dot of the small world in drawn.jpg
ICON, BANNER = 400, (2100, 900)
GAP = 50
PAPER = (24, 20, 37)


def dots(name: str, size: int, place: int = 0) -> Image.Image:
    """One image of the README's, of a pair by its place, each dot in one colour, `size` px high."""
    with Image.open(PICTURES / name) as opened:
        side = opened.height
        left = place * (opened.width - side)
        shown = opened.convert("RGB").crop((left, 0, left + side, side))
    small = shown.reduce(DOT)
    return small.resize((size, size), Image.Resampling.NEAREST)


def icon() -> Image.Image:
    """The generated image."""
    return dots("drawn.jpg", ICON)


def banner() -> Image.Image:
    """References on the left, the generated image in the middle, its attention maps right."""
    made, high = Image.new("RGB", BANNER, PAPER), BANNER[1] - 2 * GAP
    side = (high - GAP) // 2
    left = (BANNER[0] - high) // 2
    made.paste(dots("drawn.jpg", high), (left, GAP))
    for name, x in (("given.jpg", left - GAP - side), ("where.jpg", left + high + GAP)):
        made.paste(dots(name, side, 0), (x, GAP))
        made.paste(dots(name, side, 1), (x, GAP + side + GAP))
    return made


if __name__ == "__main__":
    ASSETS.mkdir(parents=True, exist_ok=True)
    icon().save(ASSETS / "icon.png", optimize=True)
    banner().save(ASSETS / "banner.png", optimize=True)
