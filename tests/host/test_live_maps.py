"""Live maps go to the page that asked for the run, and to no other."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from mmdiff_core.host.live import page


@pytest.fixture
def server(monkeypatch):
    sent = []
    started = SimpleNamespace(
        client_id=None, send_sync=lambda event, data, sid=None: sent.append((event, data, sid))
    )
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=started))
    monkeypatch.setitem(sys.modules, "server", module)
    return SimpleNamespace(asked_by=lambda client: setattr(started, "client_id", client), sent=sent)


def test_maps_go_to_the_client_of_the_run_also_when_the_node_was_made_for_another(server):
    server.asked_by("first")
    send = page()
    send("mmdiff.maps", {"step": 1})
    server.asked_by("second")
    send("mmdiff.maps", {"step": 2})
    assert server.sent == [
        ("mmdiff.maps", {"step": 1}, "first"),
        ("mmdiff.maps", {"step": 2}, "second"),
    ]


def test_a_run_that_no_page_asked_for_sends_nothing_to_anybody(server):
    page()("mmdiff.maps", {"step": 1})
    assert server.sent == []


def test_without_a_server_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "server", None)
    with pytest.raises(RuntimeError, match="turn live off to run without one"):
        page()
