"""A set of things of yours, and folders of images that two tools drew of it."""

from __future__ import annotations

import json
from pathlib import Path

from support.tiny_encoders import picture

SUBJECTS = {"rex": "dog", "cup": "cup", "ann": "woman"}
PROMPTS = (("rex",), ("rex",), ("cup",), ("ann",), ("rex", "cup"))


def write_set(folder: Path) -> Path:
    """`subjects.json` with three subjects of two references each, and five prompts."""
    for number, name in enumerate(SUBJECTS):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            picture(10 * number + i).save(folder / name / f"{i}.png")
    prompts = []
    for number, names in enumerate(PROMPTS):
        words = " and ".join(f"a {SUBJECTS[n]}<|{n}|>" for n in names)
        prompts.append({"subjects": list(names), "text": f"{words} in place {number}"})
    told = {"subjects": {n: {"noun": w} for n, w in SUBJECTS.items()}, "prompts": prompts}
    (folder / "subjects.json").write_text(json.dumps(told))
    return folder


def write_images(folder: Path, shift: int, images: int = 2) -> Path:
    """Images of the set as a tool leaves them."""
    seen: dict[str, int] = {}
    for index, names in enumerate(PROMPTS):
        group = "+".join(names)
        number = seen.get(group, 0)
        seen[group] = number + 1
        place = folder / "images" / group / str(number)
        place.mkdir(parents=True)
        for n in range(images):
            picture(shift + 3 * index + n, 80, 80).save(place / f"{n}.png")
    (folder / "manifest.json").write_text(json.dumps({"tool": f"tool {shift}"}))
    return folder
