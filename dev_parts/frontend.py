"""ComfyUI's newest frontend: the page is tested with it and with the one that ComfyUI pins."""

from __future__ import annotations

import shutil
from pathlib import Path

from .adopt import pip_for
from .folders import ensure, scratch
from .host import Host, Pack
from .lock import locked
from .packages import install
from .process import INSTALL_LOG, DevError, say, step

# no version: the page is tested with the newest one, besides the one that ComfyUI pins
FRONTEND_PACKAGE = "comfyui-frontend-package"

FRONTEND_IN_PACKAGE = Path("comfyui_frontend_package/static")

NEWEST_FRONTEND = "MMDIFF_NEWEST_FRONTEND"  # tells the tests where it is


def fetch_frontend(pack: Pack, host: Host, folder: Path) -> None:
    """Unpack the newest frontend into a folder of its own, by a rename at the very end.

    The host keeps the one it has.
    """
    with scratch(pack.work) as empty:
        new = empty / "new"
        label, arguments = (
            "Fetching ComfyUI's newest frontend",
            ["--no-deps", "--target", new, FRONTEND_PACKAGE],
        )
        if host.own:
            install(pack, label, *arguments)
        else:
            step(label, [*pip_for(host), "install", *arguments], pack.work / INSTALL_LOG)
        if not (new / FRONTEND_IN_PACKAGE / "index.html").is_file():
            raise DevError(
                f"{FRONTEND_PACKAGE} holds no {FRONTEND_IN_PACKAGE.as_posix()}/index.html."
            )
        shutil.rmtree(folder, ignore_errors=True)
        new.replace(folder)


def newest_frontend(pack: Pack, host: Host) -> Path:
    """Where the newest frontend is, fetched once for each .host/.

    The tests that want it look whether it is there.
    """
    folder, stamp = pack.work / "newest_frontend", pack.work / "stamps" / "newest_frontend"
    static = folder / FRONTEND_IN_PACKAGE
    if not (static / "index.html").is_file():
        stamp.unlink(missing_ok=True)
    try:
        with locked(pack.work):
            ensure(stamp, [FRONTEND_PACKAGE], lambda: fetch_frontend(pack, host, folder))
    except DevError as error:
        say(
            "ComfyUI's newest frontend could not be fetched, so the page is not tested with it: "
            f"{error}"
        )
    else:
        version = next(
            (found.stem.rpartition("-")[2] for found in folder.glob("*.dist-info")),
            "of unknown version",
        )
        say(
            f"The page is tested with ComfyUI's frontend {version} too; "
            f"remove {folder} to have a newer one"
        )
    return static
