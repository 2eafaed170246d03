"""A ComfyUI of a person's own: what it lacks goes beside it, nothing is written into it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .folders import ensure, link_folder
from .host import PACK_NAME, Host, Pack, probe, resolve_host
from .lock import locked
from .packages import TEST_PACKAGES, provide_host, requirements
from .process import INSTALL_LOG, DevError, say, step
from .server import in_custom_nodes

# its packages (onnxruntime, onnxruntime-gpu ...) are one module: a second one would hide the first
RUNTIME = "onnxruntime"


def pip_for(host: Host) -> list[str | Path]:
    """A pip that looks at the host's environment; ours, pointed at it, when it has none."""
    has_pip = (
        subprocess.run([str(host.python), "-m", "pip", "--version"], capture_output=True).returncode
        == 0
    )
    return (
        [host.python, "-m", "pip"]
        if has_pip
        else [sys.executable, "-m", "pip", "--python", host.python]
    )


def plain(name: str) -> str:
    """A package name as package tools compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


def truly_missing(report: Mapping[str, Any], installed: Mapping[str, str]) -> list[str]:
    """From pip's plan, the packages that the host lacks altogether.

    For an older one say so and keep the person's.
    """
    have = {plain(name): version for name, version in installed.items()}
    wanted = [
        (item["metadata"]["name"], item["metadata"]["version"])
        for item in report.get("install", [])
    ]
    missing = []
    for name, version in wanted:
        if plain(name) in have:
            say(
                f"Your ComfyUI keeps its {name} {have[plain(name)]}; "
                f"pip would take {version} for this pack"
            )
        elif not (plain(name).startswith(RUNTIME) and any(n.startswith(RUNTIME) for n in have)):
            missing.append(f"{name}=={version}")
    return missing


def install_extra(pack: Pack, host: Host, installed: Mapping[str, str]) -> None:
    """Put what the person's environment lacks for pack and tests into .host/extra, replacing what
    was there.
    """
    extra, plan, log = pack.work / "extra", pack.work / "plan.json", pack.work / INSTALL_LOG
    file, pip = pack.root / "requirements.txt", pip_for(host)
    named = ["-r", file] if file.is_file() else []
    step(
        "Looking for packages that your ComfyUI lacks",
        [*pip, "install", "--dry-run", "--report", plan, *named, *TEST_PACKAGES],
        log,
    )
    missing = truly_missing(json.loads(plan.read_text(encoding="utf-8")), installed)
    shutil.rmtree(extra, ignore_errors=True)
    extra.mkdir()
    if missing and any(host.python.parent.glob("*._pth")):
        raise DevError(
            f"{host.python} is a portable build that looks for packages in its own folder only, "
            f"and it lacks {', '.join(missing)}. "
            f"Install them with: {host.python} -m pip install {' '.join(missing)}"
        )
    if missing:
        step(
            f"Installing {', '.join(missing)} into {extra}",
            [*pip, "install", "--no-deps", "--target", extra, *missing],
            log,
        )


def adopt_host(pack: Pack, host: Host) -> Host:
    """Check a person's own ComfyUI and add what it lacks beside it; nothing is written into it."""
    say(f"Using your ComfyUI in {host.comfyui} with {host.python}")
    pack.work.mkdir(exist_ok=True)
    found = probe(host)
    parts = [
        str(host.python),
        requirements(pack.root),
        *TEST_PACKAGES,
        json.dumps(found["installed"], sort_keys=True),
    ]
    ensure(
        pack.work / "stamps" / "extra", parts, lambda: install_extra(pack, host, found["installed"])
    )
    if not in_custom_nodes(host.comfyui, pack):
        link_folder(pack.root, pack.work / "custom_nodes" / PACK_NAME)
    return replace(host, device=found["device"])


def ensure_host(pack: Pack) -> Host:
    """Find or make the host; the one function that every command begins with."""
    host = resolve_host(pack, os.environ)
    with locked(pack.work):
        if not host.own:
            return adopt_host(pack, host)
        provide_host(pack, host)
        return host
