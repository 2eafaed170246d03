"""Every Python file keeps to the form of the house: short lines, functions and files.

BREACHES lists what does not yet, with how many breaches it may have. Its numbers only go down:
a file or folder that has fewer must say so here, and one without any leaves the table.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support.paths import PACK

LINE, FUNCTION, FILE = 100, 40, 350
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FOLDERS = ("mmdiff_core", "nodes", "tests", "dev_parts")

# a file or a folder -> how many breaches it may have
BREACHES: dict[str, int] = {
    "mmdiff_core/checkpoints/checkpoint.py": 1,
    "mmdiff_core/checkpoints/released.py": 1,
    "mmdiff_core/checkpoints/subject_file.py": 1,
    "mmdiff_core/host/application.py": 1,
    "mmdiff_core/host/doctor.py": 1,
    "mmdiff_core/host/run.py": 1,
    "mmdiff_core/host/watch.py": 1,
    "mmdiff_core/references/faces.py": 1,
    "mmdiff_core/references/mix.py": 1,
    "mmdiff_core/training/data/annotation/folder.py": 1,
    "tests/core/test_small_world.py": 4,
    "tests/tools/node_pictures.py": 14,
}


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


def exception_of(name: str) -> str | None:
    """The entry of BREACHES that a file falls under."""
    return next((entry for entry in BREACHES if name == entry or name.startswith(entry)), None)


@cache
def breaches_by_file() -> dict[str, list[str]]:
    found = {}
    for path in python_files():
        breaches = list(breaches_in(path.read_text(encoding="utf-8")))
        if breaches:
            found[path.relative_to(PACK).as_posix()] = breaches
    return found


def test_lines_functions_and_files_are_short_and_a_statement_has_one_comprehension():
    strict = {name: b for name, b in breaches_by_file().items() if exception_of(name) is None}
    assert strict == {}


@pytest.mark.parametrize("entry", BREACHES)
def test_what_may_still_break_the_form_breaks_it_as_often_as_it_says_or_less(entry):
    counts = Counter()
    for name, breaches in breaches_by_file().items():
        counts[exception_of(name)] += len(breaches)
    assert counts[entry] <= BREACHES[entry], f"{entry} has {counts[entry]}: mend what was added"
    assert counts[entry] > 0, f"{entry} has no breach any more: take it out of BREACHES"


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
