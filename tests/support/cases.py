"""Recorded cases of the official code, and the pack run on one of them through its own public
functions.

A case is `case_X.json` + `case_X.safetensors` as described in reference/NUMBERS.md. Weights and
configs come from the case's folder where it brings them, else from ours.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

# a test node in the server reads this file too, alone
TESTS = Path(__file__).resolve().parents[1]
OURS = TESTS / "reference"
BASE_FILE = "base.json"
CHECKPOINT = TESTS / "tiny/models/mmdiff/tiny-portrait"


def find_cases(folder: Path) -> list[Path]:
    """Every case in a folder; an empty folder is an error, not a pass."""
    found = sorted(p for p in folder.glob("case_*.json") if p.with_suffix(".safetensors").is_file())
    if not found:
        raise FileNotFoundError(f"{folder} holds no case_*.json with a .safetensors beside it")
    return found


def weights_folder(folder: Path) -> Path:
    return (
        folder
        if (folder / "weights/unet_comfy.safetensors").is_file() and (folder / "configs").is_dir()
        else OURS
    )


def brought_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a folder of cases has of its own."""
    brought = folder / "weights/checkpoint"
    return brought if brought.is_dir() else None


def checkpoint_folder(folder: Path) -> Path:
    """The case's own checkpoint, or ours.

    A brought one is copied beside the record of the small base, which the official code does not
    write.
    """
    brought = brought_checkpoint(folder)
    if brought is None or (brought / BASE_FILE).is_file():
        return brought or CHECKPOINT
    copy = Path(tempfile.mkdtemp()) / brought.name
    shutil.copytree(brought, copy)
    shutil.copy(CHECKPOINT / BASE_FILE, copy / BASE_FILE)
    return copy


def cls_embeddings(clip_vision, adapter, images: torch.Tensor) -> torch.Tensor:
    """CLS [R C] of the adapter's image encoder for IMAGE [R H W 3], on the images as the pack pads
    them.
    """
    from mmdiff_core.host.vision import cls_of_pixels
    from mmdiff_core.references.pixels import object_pixels, to_uint8

    whole = to_uint8(images[..., :3]).movedim(-1, 1)
    pixels = torch.stack([object_pixels(image, adapter.config.image_size) for image in whole])
    return cls_of_pixels(clip_vision, adapter, pixels)


class RecordedFaces:
    """A face source that answers with the case's recorded embeddings and crops, picture after
    picture.
    """

    def __init__(self, embeddings: torch.Tensor, crops: list[torch.Tensor]):
        self.answers = [
            (e.numpy(), c.movedim(0, -1).numpy()) for e, c in zip(embeddings, crops, strict=True)
        ]
        self.calls = 0

    def portrait(self, image: np.ndarray, which: int, label: str) -> tuple[np.ndarray, np.ndarray]:
        self.calls += 1
        return self.answers[(self.calls - 1) % len(self.answers)]


@dataclass(frozen=True, eq=False)
class Case:
    path: Path

    @cached_property
    def meta(self) -> dict:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def has(self, name: str) -> bool:
        return name in self.tensors

    @property
    def variants(self) -> list[str]:
        """Recorded: second text encoder's LoRA unused ("official"), used ("te2lora")."""
        recorded = {name.partition("/")[0] for name in self.tensors}
        return [variant for variant in ("official", "te2lora") if variant in recorded]

    @property
    def call(self) -> dict:
        return self.meta["call"]

    def slots(self) -> list[list[int]]:
        """Reference numbers of each bound subject.

        One mask column takes all references (quirks 8 and 9).
        """
        mask = self["input/image_token_idx_mask"][0].tolist()
        count = len(self["input/face_embeds"])
        if len(mask) == 1:
            return [list(range(count))] if mask[0] else []
        return [[i] for i, bound in enumerate(mask) if bound]

    def object_image(self, reference: int) -> torch.Tensor:
        """IMAGE [1 H W 3] of one reference.

        References beyond the recorded ones repeat the first (only it is read).
        """
        name = f"input/object_raw_{reference}"
        raw = self[name] if self.has(name) else self["input/object_raw_0"]
        return (raw.float() / 255).movedim(0, -1)[None]

    def images(self, slot: list[int]) -> torch.Tensor:
        """IMAGE batch of a slot.

        Its first picture is the recorded one; the others' pixels are never read by the text.
        """
        first = self.object_image(slot[0])
        return first.repeat(len(slot), 1, 1, 1)

    def faces(self, slot: list[int]) -> RecordedFaces:
        return RecordedFaces(
            self["input/face_embeds"][slot], [self[f"input/face_crop_{i}"] for i in slot]
        )

    @property
    def size_options(self) -> dict[str, int]:
        """SDXL size conditioning as ComfyUI's cond options."""
        height, width, top, left, target_height, target_width = (
            int(x) for x in self.meta["time_ids"]
        )
        return {
            "width": width,
            "height": height,
            "crop_w": left,
            "crop_h": top,
            "target_width": target_width,
            "target_height": target_height,
        }

    def start(self, model) -> float:
        """The delayed start as a fraction: between the last plain and the first fused timestep."""
        step, times = self.call.get("start_merge_step", 0), self.meta["timesteps"]
        if step <= 0:
            return 0.0
        if step >= len(times):
            return 1.0
        return 1.0 - (times[step - 1] + times[step]) / 2 / 999.0


CASE = Case(OURS / "case_A.json")  # the one of all tests that need just one


def recorded_prompt(case: Case) -> str:
    return case.meta["prompt"] if case.slots() else case.meta["prompt_without_trigger"]
