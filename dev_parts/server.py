"""The server: its command line, its folders, and waiting until it answers."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .host import Host, Pack
from .process import DevError, say, stop, tail

TINY_MODELS = Path("tests/tiny/models")  # one folder for each of ComfyUI's model folder names

# a folder of node packs that only the tests and the demo need
TINY_NODES = Path("tests/host_nodes")

BYTECODE = "bytecode"  # in .host/, where Python is told to write none beside its sources

SERVER_FOLDERS = ("output", "input", "temp", "user")

# seconds for the server to answer: custom nodes of a person's own can take minutes
START_LIMIT = 600


# ---------------------------------------------------------------- stamps, links, yaml


def in_custom_nodes(comfyui: Path, pack: Pack) -> bool:
    """Whether the host loads the pack from its own custom_nodes, under whatever name."""
    folder = comfyui / "custom_nodes"
    return folder.is_dir() and any(
        entry.exists() and entry.samefile(pack.root) for entry in folder.iterdir()
    )


def extra_paths(host: Host, pack: Pack, with_tiny: bool) -> dict[str, list[Path]]:
    """ComfyUI folder name -> the folders to add under it; only those that exist."""
    paths: dict[str, list[Path]] = {"custom_nodes": []}
    if not in_custom_nodes(host.comfyui, pack):
        paths["custom_nodes"].append(pack.work / "custom_nodes")
    if with_tiny:
        paths["custom_nodes"].append(pack.root / TINY_NODES)
        models = pack.root / TINY_MODELS
        paths.update(
            {folder.name: [folder] for folder in sorted(models.glob("*")) if folder.is_dir()}
        )
    paths["custom_nodes"] = [folder for folder in paths["custom_nodes"] if folder.is_dir()]
    return {name: folders for name, folders in paths.items() if folders}


def paths_yaml(paths: Mapping[str, Sequence[Path]]) -> str:
    """The text of an extra_model_paths.yaml.

    JSON strings are YAML strings, so any path is quoted rightly.
    """
    lines = [
        f"  {name}: {json.dumps(chr(10).join(map(str, folders)), ensure_ascii=False)}"
        for name, folders in paths.items()
    ]
    return "\n".join(["mm_diff_dev:", *lines, ""])


# ---------------------------------------------------------------- setting up


def child_env(pack: Pack, host: Host) -> dict[str, str]:
    """The environment for everything that runs with the host's Python.

    Where Python was told to write no bytecode, ours goes to .host/ all the same: without it every
    start of a process compiles all of torch and ComfyUI again, for 15 seconds.
    """
    env = dict(
        os.environ, COMFYUI_PATH=str(host.comfyui), COMFYUI_PYTHON=str(host.python), PYTHONUTF8="1"
    )
    if host.own and env.pop("PYTHONDONTWRITEBYTECODE", None):
        env.setdefault("PYTHONPYCACHEPREFIX", str(pack.work / BYTECODE))
    extra = pack.work / "extra"
    if not host.own and extra.is_dir() and any(extra.iterdir()):
        env["PYTHONPATH"] = os.pathsep.join(
            part for part in (env.get("PYTHONPATH"), str(extra)) if part
        )
    return env


# ---------------------------------------------------------------- the server


def port_number(text: str) -> int:
    """A port as it is written on a command line."""
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port; expected a number from 1 to 65535")


def page_of(rest: Sequence[str]) -> tuple[int, str]:
    """The port and the address of the page of a server with these arguments of ComfyUI's.

    A port that is named has to be free; else it is 8188, or any other free one.
    """
    parser = argparse.ArgumentParser(prog="dev.py serve", add_help=False, allow_abbrev=False)
    parser.add_argument("--port", type=port_number)
    parser.add_argument("--listen", nargs="?", const="")
    parser.add_argument("--tls-keyfile")
    given, _ = parser.parse_known_args(rest)
    address = (given.listen or "127.0.0.1").partition(",")[0]
    shown = "127.0.0.1" if address in ("0.0.0.0", "::") else address
    port = given.port or free_port(8188)
    if given.port and (problem := why_taken(shown, given.port)):
        raise DevError(
            f"Port {given.port} on {shown} cannot be used: {problem}. Choose another, or leave "
            "--port out to have a free one chosen."
        )
    name = f"[{shown}]" if ":" in shown else shown
    return port, f"http{'s' if given.tls_keyfile else ''}://{name}:{port}"


def why_taken(address: str, port: int) -> str | None:
    """Why no server can listen there; None if one can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe_socket:
        if os.name != "nt":  # as the server does, for ports that were used a moment ago
            probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((address, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


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
    command = [
        str(host.python),
        str(host.comfyui / "main.py"),
        "--port",
        str(port),
        "--disable-auto-launch",
    ]
    command += [
        part for name, folder in folders.items() for part in (f"--{name}-directory", str(folder))
    ]
    if "--database-url" in (host.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
        command += ["--database-url", f"sqlite:///{folders['user'] / 'comfyui.db'}"]
    if host.device == "cpu":
        command.append("--cpu")
    if paths := extra_paths(host, pack, with_tiny):
        config = pack.work / ("paths-with-tiny.yaml" if with_tiny else "paths.yaml")
        config.write_text(paths_yaml(paths), encoding="utf-8")
        command += ["--extra-model-paths-config", str(config)]
    return command


def wait_ready(
    process: subprocess.Popen[bytes], url: str, log: Path, limit: float = START_LIMIT
) -> None:
    """Wait until the server answers; an error with its log's end if it dies or takes too long."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    begin = said = time.monotonic()
    while time.monotonic() - begin < limit:
        if process.poll() is not None:
            raise DevError(
                f"The server stopped (exit status {process.returncode}). "
                f"The end of {log}:\n{tail(log)}"
            )
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            direct.open(f"{url}/system_stats", timeout=5),
        ):
            return say(f"Server answers at {url} after {time.monotonic() - begin:.1f} s")
        if time.monotonic() - said >= 5:
            said = time.monotonic()
            say(f"  waiting for the server: {said - begin:.0f} s so far")
        time.sleep(0.25)
    raise DevError(
        f"The server did not answer within {limit:.0f} s. The end of {log}:\n{tail(log)}"
    )


@contextlib.contextmanager
def running_server(pack: Pack, host: Host) -> Iterator[str]:
    """A server with the test models for as long as the block lasts; gives its address."""
    port, log = free_port(), pack.work / "server.log"
    command = server_command(pack, host, port, with_tiny=True)
    say(f"Starting ComfyUI (log: {log}) ...")
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=pack.work, env=child_env(pack, host), stdout=out, stderr=out
        )
        try:
            wait_ready(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)
