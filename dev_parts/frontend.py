"""ComfyUI's newest frontend: the page is tested with it and with the one that ComfyUI pins."""

from __future__ import annotations

from pathlib import Path

from .aside import Aside, fetched_for_tests
from .host import Host, Pack
from .process import say

FRONTEND_IN_PACKAGE = Path("comfyui_frontend_package/static")

# no version: the page is tested with the newest one, besides the one that ComfyUI pins
FRONTEND = Aside(
    name="newest_frontend",
    purpose="ComfyUI's newest frontend",
    packages=("comfyui-frontend-package",),
    proof=(FRONTEND_IN_PACKAGE / "index.html").as_posix(),
    alone=True,
)

NEWEST_FRONTEND = "MMDIFF_NEWEST_FRONTEND"  # tells the tests where it is


def newest_frontend(pack: Pack, host: Host) -> Path:
    """Where the newest frontend is, fetched once for each .host/.

    The tests that want it look whether it is there.
    """
    folder = fetched_for_tests(FRONTEND, pack, host, "the page is not tested with it")
    version = next((found.stem.rpartition("-")[2] for found in folder.glob("*.dist-info")), None)
    if version:
        say(
            f"The page is tested with ComfyUI's frontend {version} too; "
            f"remove {folder} to have a newer one"
        )
    return folder / FRONTEND_IN_PACKAGE
