"""What the documentation promises can be looked up: every test it names exists."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
TABLES = TESTS.parent / "mmdiff_core/host/README.md"
NAMED = re.findall(r"`(\w+\.py)::(test_\w+)`", TABLES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file, name", NAMED)
def test_every_situation_in_the_tables_has_its_test(file, name):
    defined = {x.name for x in ast.parse((TESTS / file).read_text(encoding="utf-8")).body if isinstance(x, ast.FunctionDef)}
    assert name in defined, f"{file} has no {name}"


def test_no_line_of_the_tables_is_without_a_test():
    rows = [line for line in TABLES.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and not line.startswith(("| situation", "| ---"))]
    assert len(rows) == len(NAMED) > 30
