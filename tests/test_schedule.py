"""In which order several processes take the tests, and what each start of a process costs them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dev_parts.host import Host
from dev_parts.server import BYTECODE, child_env

from support.folders import make_comfyui, make_pack
from support.paths import TESTS
from support.schedule import PAGES, SECONDS, longest_first, unit_of


def test_the_files_of_the_page_are_one_unit_for_each_frontend_and_every_other_file_is_its_own():
    old, new = PAGES
    assert unit_of(f"page/test_a.py::test_x[litegraph-{old}-1]") == old
    assert unit_of(f"page/newer/test_b.py::test_y[nodes 2.0-{new}]") == new
    assert unit_of("page/test_a.py::test_without_a_page") == old
    assert unit_of("host/test_a.py::test_x[a::b]") == "host/test_a.py"


def test_the_longest_units_come_first_and_their_tests_stay_in_order():
    slow = next(iter(SECONDS))
    quick = "core/test_quick.py"
    names = [f"{quick}::test_1", f"{slow}::test_1", f"{quick}::test_2", f"{slow}::test_2"]
    if slow in PAGES:
        names = [name.replace(f"{slow}::", f"page/test_a.py::x[{slow}]") for name in names]
    items = [SimpleNamespace(nodeid=name) for name in names]
    longest_first(items)
    assert [item.nodeid for item in items] == [names[1], names[3], names[0], names[2]]


@pytest.mark.parametrize("unit", [unit for unit in SECONDS if unit not in PAGES])
def test_every_unit_with_a_time_is_a_file(unit):
    assert (TESTS / unit).is_file()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("told", ["1", ""])
def test_what_python_compiled_is_kept_in_the_packs_own_folder_where_python_may_write_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool, told: str
):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", told)
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    pack = make_pack(tmp_path / "mm")
    host = Host(make_comfyui(tmp_path / "C"), Path(sys.executable), own=own)
    env = child_env(pack, host)
    kept = env.get("PYTHONPYCACHEPREFIX")
    if own and told:
        assert kept == str(pack.work / BYTECODE) and "PYTHONDONTWRITEBYTECODE" not in env
    else:
        assert kept is None and env.get("PYTHONDONTWRITEBYTECODE", "") == told
