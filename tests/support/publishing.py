"""The tools for documentation and releases, which are in a folder of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dev_parts.aside import folder_of
from dev_parts.host import Pack
from dev_parts.publishing import PUBLISHING, PUBLISHING_TOOLS, QUIET

from support.paths import PACK

LIMIT = 600  # seconds: a build of the site takes five, on a busy machine a minute
MADE = (".git", ".host", "output", "__pycache__", ".ruff_cache", ".pytest_cache", "node_modules")


def tools() -> Path:
    """Their folder; without it the test is skipped, but fails where CI is set."""
    folder = Path(os.environ.get(PUBLISHING_TOOLS) or folder_of(PUBLISHING, Pack(PACK)))
    if not (folder / PUBLISHING.proof).is_file():
        why = f"{folder} has no {PUBLISHING.proof}: python dev.py test fetches it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    return folder


def run(home: Path, command: Sequence[str], cwd: Path, **variables: str) -> str:
    """Run one of them with a home of its own; its output. A failed test shows the output."""
    env = {
        **os.environ,
        "PYTHONPATH": str(tools()),
        **QUIET,
        **dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"), str(home)),
        **dict.fromkeys(("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(home)),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=env,
        timeout=LIMIT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def checkout(folder: Path) -> Path:
    """A copy of the pack as git would check it out, its present changes included."""
    shutil.copytree(PACK, folder, ignore=shutil.ignore_patterns(*MADE), symlinks=True)
    for arguments in (("init", "-q"), ("add", "-A")):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder
