"""Stamps of what was done, links to folders, and trees that are replaced whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .host import PACK_NAME
from .process import DevError

SCRATCH = "scratch-"

# ---------------------------------------------------------------- stamps, links, yaml


def ensure(stamp: Path, parts: Sequence[str], work: Callable[[], None]) -> bool:
    """Do `work` unless the stamp says that it was done for these parts; True if it was done now."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if stamp.is_file() and stamp.read_bytes() == digest.encode():
        return False
    stamp.unlink(missing_ok=True)
    work()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    new = stamp.with_suffix(".new")
    new.write_bytes(digest.encode())
    new.replace(stamp)
    return True


@contextlib.contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """An empty folder in `work` for as long as the block lasts; those of killed runs go too."""
    for left in work.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=work) as folder:
        yield Path(folder)


def sha256_of(file: Path) -> str:
    """The SHA-256 digest of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def unlink_folder(link: Path) -> None:
    """Remove a link to a folder (a junction on Windows), but never a real folder with something in
    it.
    """
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(link):
        try:
            link.rmdir()
        except OSError as error:
            raise DevError(
                f"{link} should be a link to this pack but is a folder; move it away."
            ) from error


def link_folder(target: Path, link: Path) -> None:
    """Make `link` lead to the folder `target`, and leave it alone when it does already."""
    if link.exists() and link.samefile(target):
        return
    unlink_folder(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":  # a junction, because symbolic links need rights that most people lack
        subprocess.run(
            ["cmd", "/c", "mklink", "/J", str(link), str(target)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    else:
        link.symlink_to(target, target_is_directory=True)


# ---------------------------------------------------------------- setting up


def keep_models(old: Path, new: Path) -> None:
    """Carry over what a person put into the old tree's models and custom_nodes."""
    for name in ("models", "custom_nodes"):
        for path in sorted((old / name).rglob("*")):
            target = new / path.relative_to(old)
            if (path.is_symlink() or path.is_file()) and not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)


def replace_tree(tree: Path, new: Path) -> None:
    """Put `new` in the place of `tree` by renames.

    An old tree goes only after its models have been carried over.
    """
    old = tree.with_name(f"{tree.name}.old")
    if old.exists():  # left by a run that was interrupted below
        keep_models(old, tree)
        shutil.rmtree(old)
    if tree.exists():
        unlink_folder(tree / "custom_nodes" / PACK_NAME)
        tree.replace(old)
    new.replace(tree)
    if old.exists():
        keep_models(old, tree)
        shutil.rmtree(old)
