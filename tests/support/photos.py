"""A data set of photos with a dog and a ball, and the forms it is written in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmdiff_core.training.data.config import DataConfig, Dropout
from mmdiff_core.training.data.masks import encode_rle

CAPTION = "a dog and a red ball"

SIZES = ((96, 64), (64, 96), (64, 64))  # width, height

CONFIG = DataConfig(side=64, multiple=16, group=4, reference_side=24, dropout=Dropout(0, 0))


def picture(number: int, size: tuple[int, int]) -> tuple[Image.Image, list[np.ndarray]]:
    """Noise on which a dog (red) stands left and a ball (green) right, and their masks [H W]."""
    width, height = size
    pixels = np.random.default_rng(number).integers(0, 80, (height, width, 3), dtype=np.uint8)
    masks = [np.zeros((height, width), bool) for _ in range(2)]
    masks[0][20:50, 6:26], masks[1][30:44, width - 24 : width - 10] = True, True
    pixels[masks[0]], pixels[masks[1]] = (200, 40 + number, 40), (40, 200, 40 + number)
    return Image.fromarray(pixels), masks


def segments(masks: list[np.ndarray], **more) -> list[dict]:
    boxes = [
        [
            int(np.nonzero(m.any(0))[0][0]),
            int(np.nonzero(m.any(1))[0][0]),
            int(np.nonzero(m.any(0))[0][-1]) + 1,
            int(np.nonzero(m.any(1))[0][-1]) + 1,
        ]
        for m in masks
    ]
    words = (("dog", 2, 5), ("ball", 16, 20))
    return [
        {"id": i, "word": w, "start": a, "end": b, "box": box, **more}
        for i, ((w, a, b), box) in enumerate(zip(words, boxes), 1)
    ]


def write_jsonl(folder: Path, count: int = 9, change=lambda number, facts: None) -> Path:
    """A data set of `count` pictures of three shapes; `change` may spoil a line's facts."""
    lines = []
    for number in range(count):
        image, masks = picture(number, SIZES[number % 3])
        image.save(folder / f"{number}.png")
        facts = {"image": f"{number}.png", "caption": CAPTION, "segments": segments(masks)}
        for segment, mask in zip(facts["segments"], masks):
            segment["mask"] = encode_rle(mask)
        change(number, facts)
        lines.append(json.dumps(facts) + "\n")
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "data.jsonl"


def write_tar(path: Path, count: int, masks_as: str) -> Path:
    """The same data set as a WebDataset shard, with masks as .png files or as the demo's map of
    ids.
    """
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for number in range(count):
            image, masks = picture(number, SIZES[number % 3])
            add(
                f"00000/{number}.json",
                json.dumps(
                    {"image_id": str(number), "caption": CAPTION, "segments": segments(masks)}
                ).encode(),
            )
            add(f"00000/{number}.png", encoded(image))
            if masks_as == "png":
                for i, mask in enumerate(masks, 1):
                    add(f"00000/{number}.{i}.png", encoded(Image.fromarray(mask)))
            else:
                ids, data = masks[0] * 1.0 + masks[1] * 2.0, io.BytesIO()
                np.save(data, ids.astype(np.float32))
                add(f"00000/{number}.npy", data.getvalue())
    return path


def encoded(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def same(one, two) -> bool:
    """Whether two examples, or tuples of them, are equal to the last bit."""
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return (
        (one.index, one.caption) == (two.index, two.caption)
        and torch.equal(one.pixels, two.pixels)
        and len(one.subjects) == len(two.subjects)
        and all(
            a.span == b.span
            and torch.equal(a.mask, b.mask)
            and torch.equal(a.references, b.references)
            for a, b in zip(one.subjects, two.subjects)
        )
    )
