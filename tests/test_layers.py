"""The pack's parts import one way only, and from the outside only what each may."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parent.parent
CORE = PACK / "mmdiff_core"

# each room of the package imports only from the rows above its own, and from itself
ORDER = (
    ("untrusted", "processes"),
    ("bases",),
    ("config",),
    ("method",),
    ("checkpoints", "regions"),
    ("references",),
    ("evaluation",),
    ("training",),
    ("small_world",),
    ("host",),
    ("lab",),
    ("commands",),
    ("__main__",),
)
HOST_ONLY = {"comfy", "folder_paths", "node_helpers", "nodes", "server"}
# what only faces need -> the one file of the product that may import it
FACES = CORE / "references" / "faces"
FACES_ONLY = {
    "insightface": FACES / "package_backend.py",
    "onnxruntime": FACES / "runtime.py",
    "cv2": FACES / "resampling.py",
}


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import in a file, also those inside functions."""
    found = []
    for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(item, ast.Import):
            found += [(0, alias.name) for alias in item.names]
        elif isinstance(item, ast.ImportFrom) and item.module:
            found.append((item.level, item.module))
        elif isinstance(item, ast.ImportFrom):
            found += [(item.level, alias.name) for alias in item.names]
        elif isinstance(item, ast.Call) and (name := imported_by_call(item)):
            found.append((0, name))
    return found


def imported_by_call(call: ast.Call) -> str | None:
    """The module of `importlib.import_module("module")`, if it is told by a text."""
    function = getattr(call.func, "attr", getattr(call.func, "id", None))
    first = call.args[0] if call.args else None
    if function in ("import_module", "__import__") and isinstance(first, ast.Constant):
        return str(first.value)
    return None


def rank(room: str) -> int:
    return next(i for i, row in enumerate(ORDER) if room in row)


def room_of(path: Path) -> str:
    return path.relative_to(CORE).with_suffix("").parts[0]


def rooms_reached(path: Path) -> set[str]:
    """Other rooms of the package that a file imports from, also inside functions."""
    package = path.relative_to(CORE).parts[:-1]
    reached = set()
    for level, module in imports(path):
        if 0 < level <= len(package) + 1:
            reached.add((*package[: len(package) - level + 1], *module.split("."))[0])
    return reached - {room_of(path)}


CORE_FILES = sorted(p for p in CORE.rglob("*.py") if p.parent != CORE or p.stem != "__init__")
ALL_FILES = sorted([*CORE.rglob("*.py"), *(PACK / "nodes").glob("*.py"), PACK / "__init__.py"])


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda p: str(p.relative_to(CORE)))
def test_rooms_import_only_from_rows_above(path):
    own = room_of(path)
    for room in rooms_reached(path):
        assert rank(room) < rank(own), f"{path.relative_to(CORE)} imports {room}"


def test_the_packages_docstring_says_the_same_order():
    told = ast.get_docstring(ast.parse((CORE / "__init__.py").read_text(encoding="utf-8")))
    rows = [line.strip() for line in told.splitlines() if line.startswith("    ")]
    assert rows == [" · ".join(row) for row in ORDER]


def test_every_room_is_in_the_order():
    listed = {room for row in ORDER for room in row}
    assert {room_of(path) for path in CORE_FILES} == listed


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(PACK)))
def test_only_the_host_part_touches_comfy_and_only_one_file_of_faces_each_package(path):
    roots = {module.split(".")[0] for level, module in imports(path) if level == 0}
    if CORE / "host" not in path.parents:
        assert not roots & HOST_ONLY
    assert not {name for name in roots & set(FACES_ONLY) if path != FACES_ONLY[name]}
    if path.parent.name != "nodes":
        assert "comfy_api" not in roots


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(PACK)))
def test_the_pack_imports_itself_relatively(path):
    assert not {m.split(".")[0] for level, m in imports(path) if level == 0} & {
        "mmdiff_core",
        "nodes",
    }


def test_the_files_that_import_what_only_faces_need_do_so():
    for name, path in FACES_ONLY.items():
        assert name in {module.split(".")[0] for _, module in imports(path)}


def test_no_file_names_a_machine():
    pattern = re.compile(r"(^|[^\w.-])/(work|root|home|tmp)/")
    listed = [
        p
        for p in PACK.rglob("*")
        if p.suffix in (".py", ".md", ".json", ".toml", ".txt", ".yaml")
        and p.stat().st_size < 200_000
    ]
    own = [
        p
        for p in listed
        if not {".host", ".git", "output", "node_modules"} & set(p.relative_to(PACK).parts)
        and p != Path(__file__)
    ]
    assert [
        str(p) for p in own if pattern.search(p.read_text(encoding="utf-8", errors="ignore"))
    ] == []
