"""What the commands of dev.py promise, and the newest frontend that the tests are given."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import dev
from dev_parts import aside, packages, publishing
from dev_parts.frontend import FRONTEND_IN_PACKAGE, NEWEST_FRONTEND, newest_frontend
from dev_parts.host import Host
from dev_parts.process import DevError
from dev_parts.publishing import PUBLISHING_TOOLS

from support.folders import make_pack

# ---------------------------------------------------------------- the newest frontend


class Registry:
    """Stands in for pip: puts a frontend of a version into the folder after --target, or fails."""

    def __init__(self) -> None:
        self.version, self.commands = "1.2.3", []

    def step(self, label: str, command: list[Any], log: Path) -> None:
        self.commands.append([str(part) for part in command])
        if not self.version:
            raise DevError(f"{label} failed")
        target = Path(command[command.index("--target") + 1])
        (target / FRONTEND_IN_PACKAGE).mkdir(parents=True)
        (target / FRONTEND_IN_PACKAGE / "index.html").write_text(self.version)
        (target / f"comfyui_frontend_package-{self.version}.dist-info").mkdir()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    stand_in = Registry()
    for part in (packages, aside):
        monkeypatch.setattr(part, "step", stand_in.step)
    return stand_in


def make_working_pack(tmp_path: Path) -> Any:
    pack = make_pack(tmp_path / "mm")
    pack.work.mkdir()
    return pack


@pytest.mark.parametrize("own", [True, False])
def test_newest_frontend_is_fetched_once_and_never_into_the_hosts_environment(
    tmp_path: Path,
    registry: Registry,
    own: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(packages, "venv_python", lambda venv: Path(sys.executable))
    pack = make_working_pack(tmp_path)
    host = Host(tmp_path, Path(sys.executable), own=own)
    static = newest_frontend(pack, host)
    assert (
        static.parent.parent == pack.work / "newest_frontend"
        and (static / "index.html").read_text() == "1.2.3"
    )
    registry.version = "1.2.4"
    assert (
        newest_frontend(pack, host) == static
        and "1.2.3" in capsys.readouterr().out.splitlines()[-1]
    )
    (command,) = registry.commands
    assert {"--no-deps", "--target", "comfyui-frontend-package"} <= set(command), (
        "no version is asked for"
    )
    shutil.rmtree(pack.work / "newest_frontend")
    newest_frontend(pack, host)
    assert (static / "index.html").read_text() == "1.2.4", "removed by hand, it is fetched again"
    left = sorted(path.name for path in pack.work.iterdir())
    assert left == ["install.log", "lock", "newest_frontend", "stamps"]


def test_frontend_that_cannot_be_fetched_is_told_and_tried_again(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, host = make_working_pack(tmp_path), Host(tmp_path, Path(sys.executable), own=False)
    registry.version = ""
    static = newest_frontend(pack, host)
    assert not static.exists() and "the page is not tested with it" in capsys.readouterr().out
    registry.version = "1.2.3"
    assert (newest_frontend(pack, host) / "index.html").is_file()


@pytest.mark.parametrize(("named", "told"), [("", "fetched"), ("of my own", "of my own")])
def test_tests_are_told_where_the_newest_frontend_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, told: str
) -> None:
    calls: list[Any] = []
    monkeypatch.setenv(NEWEST_FRONTEND, named)
    monkeypatch.setattr(
        dev, "ensure_host", lambda pack: Host(tmp_path, Path(sys.executable), own=False)
    )
    monkeypatch.setattr(dev, "newest_frontend", lambda pack, host: Path("fetched"))
    monkeypatch.setattr(dev, "fetched_for_tests", lambda *_: Path("fetched tools"))
    monkeypatch.delenv(PUBLISHING_TOOLS, raising=False)
    monkeypatch.setattr(dev, "call", lambda command, **options: calls.append(options["env"]) or 0)
    assert dev.run_test(make_pack(tmp_path / "mm"), []) == 0
    assert [env[NEWEST_FRONTEND] for env in calls] == [told]
    assert [env[PUBLISHING_TOOLS] for env in calls] == ["fetched tools"]


# ---------------------------------------------------------------- the documentation site


@pytest.mark.parametrize(("readable", "built"), [(True, 2), (False, 1)])
def test_the_site_is_built_from_the_nodes_schemas_and_not_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool, built: int
) -> None:
    calls: list[tuple[list[str], Any]] = []

    def call(command: list[Any], cwd: Path, env: Any) -> int:
        calls.append(([str(part) for part in command], env))
        return 0 if readable else 1

    host = Host(tmp_path, Path(sys.executable), own=False)
    monkeypatch.setattr(publishing, "ensure_host", lambda pack: host)
    monkeypatch.setattr(publishing, "fetched", lambda *_: tmp_path / "tools")
    monkeypatch.setattr(publishing, "call", call)
    if readable:
        assert publishing.run_docs(make_pack(tmp_path / "mm"), [str(tmp_path / "site")]) == 0
        assert {"--strict", str(tmp_path / "site")} <= set(calls[1][0])
        assert calls[1][1]["PYTHONPATH"] == str(tmp_path / "tools")
        assert calls[1][1][publishing.NODES] == calls[0][0][-1]
    else:
        with pytest.raises(DevError, match="schemas"):
            publishing.run_docs(make_pack(tmp_path / "mm"), [])
    assert len(calls) == built


# ---------------------------------------------------------------- arguments


def test_arguments_after_the_command_are_passed_on_untouched() -> None:
    assert dev.split_arguments(["test", "-k", "x", "--help"]) == ("test", ["-k", "x", "--help"])


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["-x"]])
def test_unknown_command_is_refused_with_the_known_ones(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        dev.split_arguments(argv)
    assert "serve" in capsys.readouterr().err


def test_whole_test_folder_runs_unless_a_file_of_it_is_named(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "mm")
    (pack.root / "tests").mkdir()
    (pack.root / "tests" / "test_a.py").touch()
    assert dev.pytest_arguments(pack, ["-k", "word"])[-1] == str(pack.root / "tests")
    assert dev.pytest_arguments(pack, ["tests/test_a.py::test_b"])[-1] == "tests/test_a.py::test_b"


def test_whole_test_folder_runs_on_all_cores_and_a_named_file_in_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pack = make_pack(tmp_path / "mm")
    (pack.root / "tests").mkdir()
    (pack.root / "tests" / "test_a.py").touch()
    monkeypatch.setattr(dev.os, "cpu_count", lambda: 2)
    whole = dev.pytest_arguments(pack, [])
    assert whole[whole.index("-n") + 1] == "2"
    assert "-n" not in dev.pytest_arguments(pack, ["tests/test_a.py"])
    monkeypatch.setattr(dev.os, "cpu_count", lambda: 1)
    assert "-n" not in dev.pytest_arguments(pack, [])


def test_problem_becomes_a_message_and_exit_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setattr(dev.signal, "signal", lambda *_: None)
    assert dev.main(["host"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
