"""Every Python file keeps to the form of the house: short lines, functions and files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support.paths import PACK

LINE, FUNCTION, FILE = 100, 40, 350
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FOLDERS = ("mmdiff_core", "nodes", "tests", "dev_parts")


def python_files() -> list[Path]:
    found = [*PACK.glob("*.py")]
    for folder in FOLDERS:
        found += (PACK / folder).rglob("*.py")
    return sorted(found)


def own_comprehensions(statement: ast.stmt) -> int:
    """Comprehensions of a statement, without those of the statements inside it."""
    count, left = 0, [statement]
    while left:
        for child in ast.iter_child_nodes(left.pop()):
            if not isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)):
                count += isinstance(child, COMPREHENSIONS)
                left.append(child)
    return count


def breaches_in(text: str) -> Iterator[str]:
    """What breaks the form, each with its line."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if len(line) > LINE:
            yield f"line {number} has {len(line)} columns, at most {LINE}"
    if len(lines) > FILE:
        yield f"{len(lines)} lines, at most {FILE}"
    for item in ast.walk(ast.parse(text)):
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = item.end_lineno - item.lineno + 1
            if length > FUNCTION:
                yield f"line {item.lineno}: {item.name} has {length} lines, at most {FUNCTION}"
        if isinstance(item, ast.stmt) and (count := own_comprehensions(item)) > 1:
            yield f"line {item.lineno}: {count} comprehensions in one statement, at most 1"


@cache
def breaches_by_file() -> dict[str, list[str]]:
    found = {}
    for path in python_files():
        breaches = list(breaches_in(path.read_text(encoding="utf-8")))
        if breaches:
            found[path.relative_to(PACK).as_posix()] = breaches
    return found


def test_lines_functions_and_files_are_short_and_a_statement_has_one_comprehension():
    assert breaches_by_file() == {}


@pytest.mark.parametrize(
    "text, told",
    [
        ("x = 1  " + "#" * 100, "line 1 has 107 columns"),
        ("\n" * 351, "351 lines"),
        ("def f():\n" + "    x = 1\n" * 40, "f has 41 lines"),
        ("x = [i for i in [j for j in ()]]", "2 comprehensions"),
        ("def f(x=[i for i in ()], y={j for j in ()}): pass", "2 comprehensions"),
    ],
)
def test_each_breach_is_noticed(text, told):
    assert any(told in breach for breach in breaches_in(text))


def test_statements_inside_a_statement_count_for_themselves():
    text = "if [i for i in ()]:\n    x = [i for i in ()]\n    y = {i for i in ()}"
    assert list(breaches_in(text)) == []
