"""Nodes are found by other words and keep their results on the page where the host's schema has
words for it, and load where it has not.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from types import SimpleNamespace

import pytest
from comfy_api.latest import io

from support.paths import PACK
from support.server import Server

NODES = PACK / "nodes"


@pytest.fixture
def aliases():
    spec = importlib.util.spec_from_file_location("mmdiff_aliases", NODES / "aliases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_host_that_knows_aliases_gets_them(aliases, monkeypatch):
    def newer(node_id, display_name=None, search_aliases=None):
        return SimpleNamespace(
            node_id=node_id, display_name=display_name, search_aliases=search_aliases
        )

    monkeypatch.setattr(aliases, "io", SimpleNamespace(Schema=newer))
    found = aliases.schema(node_id="MMDiffSubjectEncoder", display_name="MM-Diff Subject Encoder")
    assert found.display_name == "MM-Diff Subject Encoder" and {
        "face",
        "identity",
        "ip-adapter",
    } <= set(found.search_aliases)


@pytest.mark.parametrize("typed", ["two people", "several people", "couple", "group"])
def test_words_for_several_people_find_the_encoder_and_the_prompt(aliases, typed):
    found = {kind for kind, words in aliases.ALIASES.items() if typed in words}
    assert {"MMDiffSubjectEncoder", "MMDiffTextEncode"} <= found


def test_a_host_that_does_not_know_them_gets_the_schema_without(aliases, monkeypatch):
    def older(node_id, display_name=None):
        return SimpleNamespace(node_id=node_id, display_name=display_name)

    monkeypatch.setattr(aliases, "io", SimpleNamespace(Schema=older))
    assert aliases.schema(node_id="MMDiffLoad").node_id == "MMDiffLoad"


@pytest.mark.parametrize("kind, stays", [("MMDiffTextEncode", True), ("MMDiffDoctor", False)])
def test_a_host_that_sends_cached_results_is_asked_to_for_nodes_that_show_some(
    aliases, monkeypatch, kind, stays
):
    def newer(node_id, has_intermediate_output=False):
        return SimpleNamespace(node_id=node_id, stays=has_intermediate_output)

    monkeypatch.setattr(aliases, "io", SimpleNamespace(Schema=newer))
    assert aliases.schema(node_id=kind).stays is stays and aliases.sends_cached_results()
    monkeypatch.setattr(aliases, "io", SimpleNamespace(Schema=lambda node_id: node_id))
    assert not aliases.sends_cached_results()


def keywords_in(node: ast.ClassDef) -> dict[str, ast.expr]:
    calls = (item for item in ast.walk(node) if isinstance(item, ast.Call))
    return {keyword.arg: keyword.value for call in calls for keyword in call.keywords}


def test_every_node_that_shows_something_without_being_an_output_node_is_in_the_table(aliases):
    showing = set()
    for path in NODES.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for item in (item for item in tree.body if isinstance(item, ast.ClassDef)):
            given = keywords_in(item)
            if "ui" in given and "is_output_node" not in given:
                showing.add(given["node_id"].value)
    assert showing == set(aliases.SHOWS)


def test_this_hosts_schema_takes_what_it_is_given(aliases):
    made = aliases.schema(node_id="MMDiffLoad", display_name="Load MM-Diff", inputs=[], outputs=[])
    assert isinstance(made, io.Schema)
    known = "search_aliases" in inspect.signature(io.Schema).parameters
    assert getattr(made, "search_aliases", None) == (
        list(aliases.ALIASES["MMDiffLoad"]) if known else None
    )


def test_every_node_asks_for_its_aliases():
    files = [path for path in NODES.glob("*.py") if path.name != "aliases.py"]
    unaided = [path.name for path in files if "io.Schema(" in path.read_text(encoding="utf-8")]
    assert files and unaided == [], "io.Schema is called without aliases; call aliases.schema"


def test_the_table_has_every_node_once_and_no_alias_says_nothing_new(aliases, server: Server):
    info = server.get("/object_info")
    declared = {
        name
        for path in NODES.glob("*.py")
        for name in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert set(aliases.ALIASES) == declared <= set(info)
    for name, words in aliases.ALIASES.items():
        assert (
            words and len(set(words)) == len(words) and all(word == word.lower() for word in words)
        )
        assert info[name]["display_name"].lower() not in words
