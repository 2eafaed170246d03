"""Folders that look like a ComfyUI, a pack and an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dev_parts.host import Pack, venv_python


def make_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    (folder / "main.py").touch()
    (folder / "comfy" / "cli_args.py").touch()
    return folder


def make_pack(root: Path) -> Any:
    root.mkdir(parents=True)
    return Pack(root)


def make_python(venv: Path) -> Path:
    python = venv_python(venv)
    python.parent.mkdir(parents=True)
    python.touch()
    return python
