"""What a server answers that is no ComfyUI, or that lost what it was asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mmdiff_core.evaluation.comfy_api import ComfyServer

GRAPH = {"save": {"class_type": "SaveImage", "inputs": {}}}
FAILED = {"status_str": "error", "messages": [["execution_error", {"node_type": "KSampler"}]]}
FAILED["messages"][0][1]["exception_message"] = "x" * 5000
DONE = {"status_str": "success", "completed": True}


@contextmanager
def serving(answers: dict[str, object]) -> Iterator[str]:
    """A server that answers a path with JSON; its address. Other paths are 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = answers.get(self.path)
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def answers(entry: object = None, queue: object = None) -> dict[str, object]:
    history = {} if entry is None else {"one": entry}
    return {"/prompt": {"prompt_id": "one"}, "/queue": queue or {}, "/history/one": history}


@pytest.mark.parametrize(
    ("told", "answered"),
    [
        ("left ComfyUI's queue", answers()),
        ("failed in ComfyUI: 'KSampler: xxx", answers({"status": FAILED})),
        ("saved no image", answers({"status": DONE, "outputs": {}})),
        ("refused: 404", {}),
        ("no object", {"/prompt": [1]}),
        ("not JSON", {"/prompt": b"<html>"}),
    ],
)
def test_what_went_wrong_is_told_in_one_bounded_sentence(told, answered):
    with serving(answered) as url, pytest.raises(ValueError) as error:
        ComfyServer(url, poll=0.01).run(GRAPH, "save")
    assert told in str(error.value) and len(str(error.value)) < 700


def test_a_graph_that_waits_in_the_queue_is_waited_for():
    waiting = {"queue_running": [], "queue_pending": [[3, "one", {}]]}
    answered = answers(queue=waiting)
    with serving(answered) as url:
        done = {"status": DONE, "outputs": {"save": {"images": [{"filename": "a.png"}]}}}
        threading.Timer(0.2, answered.update, [{"/history/one": {"one": done}}]).start()
        answered["/view?filename=a.png&subfolder=&type="] = b"image"
        assert ComfyServer(url, poll=0.01).run(GRAPH, "save") == b"image"


def test_an_address_that_is_none_is_told():
    with pytest.raises(ValueError, match="no address"):
        ComfyServer("127.0.0.1:8188")
