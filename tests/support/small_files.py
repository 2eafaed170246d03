"""The smallest files of each kind that strangers give, to be damaged many times a second."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmdiff_core.bases import Base, ImageEncoder, TextEncoder
from mmdiff_core.checkpoints import released, shapes
from mmdiff_core.checkpoints.official import save_official
from mmdiff_core.config import GENERAL, PORTRAIT, MMDiffConfig
from mmdiff_core.training.data.masks import encode_rle
from mmdiff_core.training.run.config import LoopConfig
from mmdiff_core.training.run.run_state import RunStates

BASE = Base(
    "mites",
    (("input", 1, 1, 8), ("middle", 0, 1, 8)),
    16,
    (TextEncoder("l", 8, 1), TextEncoder("g", 8, 1)),
    ImageEncoder(8, 8, 2, 4, 8),
)
CONFIG = MMDiffConfig("mite", GENERAL, BASE, "released", 1, 1, 16)
# the official layout has the released refiner: heads of 256
WIDE = Base("mites", BASE.unet, 256, BASE.text, BASE.image)


def adapter_tensors(config: MMDiffConfig, rank: int = 2) -> dict[str, torch.Tensor]:
    """All tensors of an adapter whose image encoder is tuned from its last layer on."""
    sizes = {f"modules.{k}": v for k, v in shapes.module_shapes(config).items()}
    sizes |= {f"unet.{k}": v for k, v in shapes.unet_shapes(config, rank).items()}
    for stem in released.text_stems(config):
        rows, columns = shapes.text_shape(config, stem)
        sizes |= {f"text.{stem}.down": (rank, columns), f"text.{stem}.up": (rows, rank)}
    for key, shape in shapes.vision_shapes(config).items():
        if key.startswith(("visual_", "vision_model.post_", "vision_model.encoder.layers.1")):
            sizes[f"vision.{key}"] = shape
    generator = torch.Generator().manual_seed(1)
    return {key: torch.randn(shape, generator=generator) for key, shape in sizes.items()}


def write_official(folder: Path) -> None:
    """A small official folder, with the record of its base."""
    config = MMDiffConfig("portrait-mites", PORTRAIT, WIDE, "released")
    save_official(folder, config, adapter_tensors(config))


def write_state(folder: Path) -> dict:
    """A run's state of step 5; what it holds."""
    weights = {"first.weight": torch.arange(12.0).view(3, 4), "first.bias": torch.ones(3)}
    moments = {"step": torch.tensor(5.0), "exp_avg": torch.full((3, 4), 0.5)}
    group = {"lr": 0.1, "betas": (0.9, 0.99), "params": [0], "fused": None, "amsgrad": False}
    optimizer = {"state": {0: moments}, "param_groups": [group]}
    config = LoopConfig(steps=20, batch=2).to_dict()
    facts = config | {"processes": 1, "groups": [{"parameters": 2, "lr": 0.1}], "sharding": None}
    saved = {"optimizer": optimizer, "scaler": None}
    RunStates(folder, 1).commit(5, {"weights": weights, "ema": weights}, saved, facts)
    return read_state_whole(folder)


def read_state_whole(folder: Path) -> dict:
    """Everything that a resumed run reads of a folder's newest state."""
    state = RunStates(folder, 1).newest()
    tensors = {name: state.tensors(name) for name in ("weights", "ema")}
    return {"facts": state.facts, "optimizer": state.optimizer(), **tensors}


def equal(a: object, b: object) -> bool:
    """Whether two trees of plain values and tensors are the same to the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


# ---------------------------------------------------------------- training data

SIDE = 16


def record(number: int) -> tuple[dict, bytes, np.ndarray]:
    """A record's facts, its image as a .png, and its mask."""
    pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE + 4, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE + 4), bool)
    mask[3:9, 2 + number % 3 : 9] = True
    segment = {"id": 1, "word": "dog", "start": 2, "end": 5, "box": [2, 3, 9, 9]}
    segment |= {"mask": encode_rle(mask), "identity": f"dog {number % 2}"}
    facts = {"image": f"{number}.png", "caption": "a dog in the rain", "segments": [segment]}
    return facts, png(Image.fromarray(pixels)), mask


def png(image: Image.Image) -> bytes:
    """The bytes of a .png file."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def npy(values: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    data = io.BytesIO()
    np.save(data, values)
    return data.getvalue()


def write_lines(folder: Path, lines: list[bytes]) -> Path:
    """A .jsonl file of these lines."""
    (folder / "data.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder / "data.jsonl"


def tar_of(members: dict[str, bytes]) -> bytes:
    """An uncompressed tar file."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def members(count: int) -> dict[str, bytes]:
    """Shard members of records whose masks are, in turn, run lengths, .png and .npy."""
    found = {}
    for number in range(count):
        facts, image, mask = record(number)
        if number % 3:
            del facts["segments"][0]["mask"]
        if number % 3 == 1:
            found[f"{number}.1.png"] = png(Image.fromarray(mask))
        if number % 3 == 2:
            found[f"{number}.npy"] = npy(mask.astype(np.float32))
        del facts["image"]
        found |= {f"{number}.json": json.dumps(facts).encode(), f"{number}.png": image}
    return found
