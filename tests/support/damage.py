"""Copies of the small official checkpoint, and changes to their files."""

from __future__ import annotations

from pathlib import Path

import torch

from mmdiff_core.checkpoints import released

from support.cases import CHECKPOINT


def copy_checkpoint(target: Path) -> None:
    for name in (*released.FILES, released.BASE_FILE):
        (target / name).write_bytes((CHECKPOINT / name).read_bytes())


def change(path: Path, edit) -> None:
    torch.save(edit(torch.load(path, weights_only=True)), path)


def only(keep):
    return lambda sd: {key: value for key, value in sd.items() if keep(key)}
