"""Fixtures of the workflow tests."""

from __future__ import annotations

import re

import pytest

from support.paths import PACK
from support.server import Server
from support.workflows import WORKFLOWS, load


@pytest.fixture(params=WORKFLOWS, ids=lambda p: p.stem)
def workflow(request) -> dict:
    return load(request.param)


@pytest.fixture(scope="session")
def info(server: Server) -> dict:
    return server.get("/object_info")


@pytest.fixture(scope="module")
def nodes(server: Server) -> dict[str, dict]:
    """/object_info of the nodes that the pack's source declares.

    The host may have another copy of the pack beside it.
    """
    declared = {
        name
        for path in (PACK / "nodes").glob("*.py")
        for name in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
    }
    info = server.get("/object_info")
    assert declared <= set(info), f"not served: {sorted(declared - set(info))}"
    return {name: info[name] for name in sorted(declared)}
