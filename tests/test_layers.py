"""The pack's parts import one way only, and from the outside only what each may."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parent.parent
CORE = PACK / "mmdiff_core"

# each module may import only modules of earlier rows
ORDER = (
    ("bases",),
    ("config", "subjects"),
    ("attention", "masks", "vision", "refiner", "heads", "lora", "layer_weights", "mix", "subject_file", "notes", "shapes"),
    ("adapter", "maps"),
    ("official",),
    ("checkpoint",),
    ("convert", "faces", "training", "small_world", "host"),
)
# of the folders: what they may not import from the pack
FOLDERS = {"training": {"small_world", "host", "faces"}, "small_world": {"host", "faces"}, "host": set()}
HOST_ONLY = {"comfy", "folder_paths", "node_helpers", "nodes", "server"}
FACES_ONLY = {"insightface", "onnxruntime", "cv2"}


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
    return found


def rank(name: str) -> int:
    return next(i for i, row in enumerate(ORDER) if name in row)


CORE_FILES = sorted(p for p in CORE.glob("*.py") if p.stem != "__init__")
ALL_FILES = sorted([*CORE.rglob("*.py"), *(PACK / "nodes").glob("*.py"), PACK / "__init__.py"])


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda p: p.stem)
def test_core_modules_import_only_from_rows_above(path):
    for level, module in imports(path):
        if level == 1:
            name = module.split(".")[0]
            assert rank(name) < rank(path.stem), f"{path.name} imports {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_training_and_the_small_world_know_no_host(folder):
    for path in (CORE / folder).rglob("*.py"):
        reached = {module.split(".")[0] for level, module in imports(path) if level == 2}
        assert not reached & FOLDERS[folder], f"{path.name} imports {reached & FOLDERS[folder]}"


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(PACK)))
def test_only_the_host_part_touches_comfy_and_only_faces_touches_insightface(path):
    roots = {module.split(".")[0] for level, module in imports(path) if level == 0}
    if CORE / "host" not in path.parents:
        assert not roots & HOST_ONLY
    if path.name != "faces.py":
        assert not roots & FACES_ONLY
    if path.parent.name != "nodes":
        assert "comfy_api" not in roots


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(PACK)))
def test_the_pack_imports_itself_relatively(path):
    assert not {m.split(".")[0] for level, m in imports(path) if level == 0} & {"mmdiff_core", "nodes"}


def test_no_file_names_a_machine():
    pattern = re.compile(r"(^|[^\w.-])/(work|root|home|tmp)/")
    listed = [p for p in PACK.rglob("*") if p.suffix in (".py", ".md", ".json", ".toml", ".txt", ".yaml") and p.stat().st_size < 200_000]
    own = [p for p in listed if not {".host", ".git", "output", "node_modules"} & set(p.relative_to(PACK).parts) and p != Path(__file__)]
    assert [str(p) for p in own if pattern.search(p.read_text(encoding="utf-8", errors="ignore"))] == []
