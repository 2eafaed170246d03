"""What the machine refuses and what is mistyped ends in a sentence, never in a traceback."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dev
from dev_parts import process
from dev_parts.process import DevError
from dev_parts.server import page_of

from support.folders import make_comfyui

ROOT = dev.HERE.parent

# ---------------------------------------------------------------- the system


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "right to write"),
        (errno.EPERM, "right to write"),
        (errno.EROFS, "right to write"),
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EIO, "Input/output"),
        (errno.ENAMETOOLONG, "too long"),
    ],
)
@pytest.mark.parametrize("command", sorted(dev.COMMANDS))
def test_what_the_system_refuses_is_a_sentence(monkeypatch, capsys, command, number, told):
    def refused(pack, rest):
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setitem(dev.COMMANDS, command, refused)
    assert dev.main([command]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"dev.py {command}: /some/file: ") and told in said


@pytest.mark.parametrize(("free", "told"), [(2**20, True), (2**40, False)])
def test_an_installer_that_fails_on_a_full_disk_is_explained(tmp_path, monkeypatch, free, told):
    disk = SimpleNamespace(total=2**40, used=0, free=free)
    monkeypatch.setattr(process.shutil, "disk_usage", lambda folder: disk)
    with pytest.raises(DevError) as error:
        process.step("Installing", [sys.executable, "-c", "raise SystemExit(1)"], tmp_path / "log")
    assert ("make room" in str(error.value)) is told


# ---------------------------------------------------------------- the command line


@pytest.fixture
def copy(tmp_path) -> Path:
    """A pack of dev.py alone, with a ComfyUI beside it."""
    root = tmp_path / "mm"
    root.mkdir()
    shutil.copy(ROOT / "dev.py", root)
    shutil.copytree(ROOT / "dev_parts", root / "dev_parts")
    make_comfyui(tmp_path / "ComfyUI")
    return root


def run_copy(copy: Path, *arguments: str, **environment: str) -> str:
    """What dev.py says as it fails; never a traceback."""
    given = {"COMFYUI_PATH": str(copy.parent / "ComfyUI"), **environment}
    done = subprocess.run(
        [sys.executable, "dev.py", *arguments],
        cwd=copy,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (1, 2) and "Traceback" not in done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "port", ["abc", "0", "-5", "65536", "1e3", "8188.0", " 8188", "", "9" * 5000, "٣٤٥٦"]
)
def test_what_is_no_port_is_said_before_anything_is_set_up(copy, port):
    for arguments in ([f"--port={port}"], ["--port", port]):
        assert "--port" in run_copy(copy, "serve", *arguments)
    assert not (copy / ".host").exists()


def test_a_port_without_a_number_and_one_in_use_are_said(copy):
    assert "--port" in run_copy(copy, "serve", "--port")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} on 127.0.0.1 cannot be used" in run_copy(copy, "serve", "--port", port)


@pytest.mark.parametrize("variable", ["COMFYUI_PATH", "COMFYUI_PYTHON"])
@pytest.mark.parametrize("path", ["~no_such_user_here", "~no_such_user_here/ComfyUI"])
def test_the_home_of_an_unknown_user_is_said(copy, variable, path):
    said = run_copy(copy, "host", **{variable: path})
    assert variable in said and repr(path) in said


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_work_folder_that_is_none_is_said(copy, kind):
    work = copy / ".host"
    work.write_text("") if kind == "file" else work.symlink_to(copy / "gone" / "deep")
    assert str(work) in run_copy(copy, "host")


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--port", "{port}"], "http://127.0.0.1:{port}"),
        (["--port={port}"], "http://127.0.0.1:{port}"),
        (["--port", "1", "--port={port}", "--cpu"], "http://127.0.0.1:{port}"),
        (["--listen", "--port={port}"], "http://127.0.0.1:{port}"),
        (["--listen", "0.0.0.0,::", "--port={port}"], "http://127.0.0.1:{port}"),
        (["--listen=127.0.0.1", "--port={port}"], "http://127.0.0.1:{port}"),
        (["--port={port}", "--tls-keyfile", "k"], "https://127.0.0.1:{port}"),
    ],
)
def test_the_address_that_is_said_is_the_servers(arguments, address):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [part.format(port=port) for part in arguments]
    assert page_of(given) == (port, address.format(port=port))
