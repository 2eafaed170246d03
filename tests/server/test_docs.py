"""What the documentation promises can be looked up.

The tests it names exist, help pages name what the nodes have and quote what they say.
"""

from __future__ import annotations

import ast
import io
import re
import urllib.error
import urllib.request

import pytest
from PIL import Image

from support.help_pages import PAGES, names_missing_in, quoted, sentences
from support.paths import PACK, PACK_NAME, TESTS
from support.server import Server

TABLES = PACK / "mmdiff_core/host/README.md"

NAMED = re.findall(r"`(\w+\.py)::(test_\w+)`", TABLES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file, name", NAMED)
def test_every_situation_in_the_tables_has_its_test(file, name):
    (path,) = TESTS.rglob(file)
    defined = {
        x.name
        for x in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(x, ast.FunctionDef)
    }
    assert name in defined, f"{file} has no {name}"


def test_no_line_of_the_tables_is_without_a_test():
    rows = [
        line
        for line in TABLES.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| situation", "| ---"))
    ]
    assert len(rows) == len(NAMED) > 30


def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs_and_every_page_has_a_node(
    nodes,
):
    assert {p.stem for p in PAGES.glob("*.md")} == set(nodes)
    found = {
        name: names_missing_in(node, (PAGES / f"{name}.md").read_text(encoding="utf-8"))
        for name, node in nodes.items()
    }
    assert {name: left for name, left in found.items() if left} == {}


def test_every_help_page_shows_its_node_as_it_looks(nodes, server: Server):
    pages = [*PAGES.glob("*.md"), *PAGES.glob("*/zh.md")]
    assert {p.stem for p in (PAGES / "pictures").iterdir()} == set(nodes)
    for page in pages:
        node = page.parent.name if page.stem == "zh" else page.stem
        (picture,) = re.findall(r"!\[[^\]]+\]\((.+?)\)", page.read_text(encoding="utf-8"))
        assert picture == f"pictures/{node}.jpg"
        with urllib.request.urlopen(
            f"{server.url}/extensions/{PACK_NAME}/docs/{picture}", timeout=30
        ) as answer:
            found = answer.read()
        with Image.open(io.BytesIO(found)) as opened:
            assert opened.format == "JPEG" and min(opened.size) > 100 and len(found) <= 60_000


def is_said(message: str) -> bool:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.S)
    return any(pattern.search(sentence) for sentence in sentences())


@pytest.mark.parametrize(
    "path", sorted(PAGES.rglob("*.md")), ids=lambda p: str(p.relative_to(PAGES).with_suffix(""))
)
def test_every_message_that_a_help_page_explains_is_one_that_the_pack_says(path):
    assert [
        message for message in quoted(path.read_text(encoding="utf-8")) if not is_said(message)
    ] == []


def test_an_invented_message_would_be_noticed():
    assert is_said("MM-Diff checkpoint … not found. Searched: …; found there: …")
    assert not is_said("MM-Diff checkpoint … was not found. Searched: …")


def test_the_server_gives_every_page_in_every_language_it_was_written_in(server: Server):
    for path in PAGES.rglob("*.md"):
        address = f"{server.url}/extensions/{PACK_NAME}/docs/{path.relative_to(PAGES).as_posix()}"
        with urllib.request.urlopen(address, timeout=120) as answer:
            assert answer.read() == path.read_bytes()
