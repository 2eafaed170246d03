"""Which ComfyUI and which Python are used; nothing is made or started here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import DevError

PACK_NAME = "comfyui-mm-diff"

PROBE = """
import importlib.metadata, json
import torch, aiohttp
mps = getattr(torch.backends, "mps", None)
xpu = getattr(torch, "xpu", None)
device = "cuda" if torch.cuda.is_available() else "mps" if mps and mps.is_available() else "cpu"
device = "xpu" if device == "cpu" and xpu and xpu.is_available() else device
packages = [d for d in importlib.metadata.distributions() if d.metadata["Name"]]
found = {d.metadata["Name"]: d.version for d in packages}
print("PROBE" + json.dumps({"device": device, "installed": found}))
"""


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the Python that runs it.

    `own` marks the one in .host/, the only one we may change.
    """

    comfyui: Path
    python: Path
    own: bool
    device: str = "unknown"


@dataclass(frozen=True)
class Pack:
    """The node pack's folder, and the folder in it for all that this script makes."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / ".host"


def missing_from_comfyui(folder: Path) -> list[str]:
    """Which of the two things that make a folder a ComfyUI it lacks."""
    parts = (("main.py", (folder / "main.py").is_file()), ("comfy/", (folder / "comfy").is_dir()))
    return [name for name, there in parts if not there]


def venv_python(venv: Path) -> Path:
    """Where a virtual environment keeps its Python on this system."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def expanded(path: str, variable: str) -> Path:
    """The path in an environment variable, with ~ as in a shell."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DevError(
            f"{variable} is {path!r}, and there is no such user's home. Write the whole path."
        ) from error


def find_python(comfyui: Path, env: Mapping[str, str]) -> Path:
    """The Python of a person's own ComfyUI, by the order in this file's docstring."""
    if env.get("COMFYUI_PYTHON"):
        return expanded(env["COMFYUI_PYTHON"], "COMFYUI_PYTHON")
    folders = (
        comfyui / ".venv",
        comfyui / "venv",
        comfyui.parent / ".venv",
        comfyui.parent / "venv",
    )
    candidates = [
        *(venv_python(folder) for folder in folders),
        comfyui.parent / "python_embeded" / "python.exe",
    ]
    return next((path for path in candidates if path.is_file()), Path(sys.executable))


def resolve_host(pack: Pack, env: Mapping[str, str]) -> Host:
    """Decide which ComfyUI and which Python to use, without making or starting anything."""
    given = env.get("COMFYUI_PATH")
    if given:
        folder = Path(os.path.abspath(expanded(given, "COMFYUI_PATH")))
        if lacking := missing_from_comfyui(folder):
            raise DevError(
                f"COMFYUI_PATH is {folder}, which has no {' and no '.join(lacking)}. Set it to the "
                "folder "
                "of a ComfyUI (the one with main.py), or unset it to have one set up in .host/."
            )
        return Host(folder, find_python(folder, env), own=False)
    around = pack.root.parent.parent
    if pack.root.parent.name == "custom_nodes" and not missing_from_comfyui(around):
        return Host(around, find_python(around, env), own=False)
    return Host(pack.work / "ComfyUI", venv_python(pack.work / "venv"), own=True)


def find_pack(script: Path, env: Mapping[str, str]) -> Pack:
    """The pack's folder by the name the person used.

    A shell's PWD still knows a link that the system resolved.
    """
    folder, shown = script.parent, Path(env.get("PWD") or script.parent)
    if shown.is_dir() and folder == Path.cwd() and shown.samefile(folder):
        folder = shown
    return Pack(folder)


def probe(host: Host) -> dict[str, Any]:
    """Ask the host's Python for torch's device and the installed packages.

    An error if it cannot run ComfyUI.
    """
    try:
        answer = subprocess.run([str(host.python), "-c", PROBE], capture_output=True, text=True)
        problem = answer.stderr.strip()[-400:]
    except OSError as error:
        answer, problem = None, str(error)
    found = answer.stdout.rpartition("PROBE")[2] if answer and answer.returncode == 0 else ""
    found = found.partition("\n")[0]  # packages can print as they are left
    if not found:
        raise DevError(
            f"{host.python} cannot import torch and aiohttp, which ComfyUI in {host.comfyui} "
            "needs:\n"
            f"{problem}\nSet COMFYUI_PYTHON to the Python that you start this ComfyUI with."
        )
    return json.loads(found)
