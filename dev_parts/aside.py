"""Packages that go into a folder of their own in .host/, so that the host's environment keeps what
it has.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .adopt import pip_for
from .folders import ensure, scratch
from .host import Host, Pack
from .lock import locked
from .packages import install
from .process import INSTALL_LOG, DevError, say, step


@dataclass(frozen=True)
class Aside:
    """Packages for a folder of their own: what they are for, and a file that shows they are there.

    `alone` leaves out what they depend on.
    """

    name: str
    purpose: str
    packages: tuple[str, ...]
    proof: str
    alone: bool = False


def fetch(aside: Aside, pack: Pack, host: Host, folder: Path) -> None:
    """Install the packages into the folder, by a rename at the very end."""
    with scratch(pack.work) as empty:
        new = empty / "new"
        options = ["--no-deps"] if aside.alone else []
        arguments = [*options, "--target", new, *aside.packages]
        label = f"Fetching {aside.purpose}"
        if host.own:
            install(pack, label, *arguments)
        else:
            step(label, [*pip_for(host), "install", *arguments], pack.work / INSTALL_LOG)
        if not (new / aside.proof).is_file():
            raise DevError(f"{', '.join(aside.packages)} came without {aside.proof}.")
        shutil.rmtree(folder, ignore_errors=True)
        new.replace(folder)


def folder_of(aside: Aside, pack: Pack) -> Path:
    """Where the packages are, whether they were fetched or not."""
    return pack.work / aside.name


def fetched(aside: Aside, pack: Pack, host: Host) -> Path:
    """The folder with the packages, fetched once for each .host/.

    DevError if they cannot be had.
    """
    folder, stamp = folder_of(aside, pack), pack.work / "stamps" / aside.name
    if not (folder / aside.proof).is_file():
        stamp.unlink(missing_ok=True)
    with locked(pack.work):
        ensure(stamp, aside.packages, lambda: fetch(aside, pack, host, folder))
    return folder


def fetched_for_tests(aside: Aside, pack: Pack, host: Host, untested: str) -> Path:
    """The same for the tests, which look whether the packages are there."""
    try:
        return fetched(aside, pack, host)
    except DevError as error:
        say(f"{aside.purpose} could not be fetched, so {untested}: {error}")
        return folder_of(aside, pack)
