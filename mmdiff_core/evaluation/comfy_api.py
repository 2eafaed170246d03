"""A running ComfyUI by its HTTP interface: upload references, run a graph, fetch its image."""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..untrusted import load_json, quoted

MOST_ANSWER = 1 << 26  # bytes
TIMEOUT = 60.0  # seconds for one answer
LONGEST = 400  # characters of the server's words in a message

Graph = dict[str, dict[str, Any]]


class GraphFailed(ValueError):
    """A node of a graph failed: of this graph, not of the server."""


@dataclass(frozen=True)
class Ran:
    """What came of a graph.

    images   of its node that saves, as the files that the server wrote
    seconds  that the server worked on it; None where it does not say
    memory   most GiB of the server's first device in use, as often as it was asked meanwhile; None
             where it does not say
    """

    images: tuple[bytes, ...]
    seconds: float | None
    memory: float | None


class ComfyServer:
    """One server. ValueError says what it answered, or that it is not there.

    poll  seconds between two looks whether a graph is done
    """

    def __init__(self, url: str, poll: float = 0.2) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{quoted(url)} is no address of a server, as http://127.0.0.1:8188")
        self.url, self.poll = url.rstrip("/"), poll

    def about(self) -> tuple[str, str]:
        """Version of ComfyUI, and the name of its device."""
        stats = self._json("/system_stats")
        system, devices = stats.get("system") or {}, stats.get("devices") or [{}]
        return str(system.get("comfyui_version", "unknown")), str(devices[0].get("name", "unknown"))

    def upload(self, path: Path, name: str) -> str:
        """Put an image into the server's input folder; its name there."""
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        answer = self._json("/upload/image", body, kind)
        return str(answer.get("name", name))

    def run(self, graph: Graph, save: str) -> bytes:
        """Run a graph; the first image of its node `save`, as the file that the server wrote."""
        return self.run_all(graph, save, most=1).images[0]

    def run_all(self, graph: Graph, save: str, most: int = 64, watched: bool = False) -> Ran:
        """Run a graph; the first `most` images of its node `save`. `watched`: with the memory.
        GraphFailed where one of its nodes fails."""
        body = json.dumps({"prompt": graph}).encode()
        asked = str(self._json("/prompt", body).get("prompt_id", ""))
        seen: list[float] | None = [] if watched else None
        entry = self._wait(asked, seen)
        images = ((entry.get("outputs") or {}).get(save) or {}).get("images") or []
        if not images:
            raise ValueError(f"the graph ran, but its node {quoted(save)} saved no image")
        files = []
        for image in images[:most]:
            named = {key: str(image.get(key, "")) for key in ("filename", "subfolder", "type")}
            files.append(self._get(f"/view?{urllib.parse.urlencode(named)}"))
        return Ran(tuple(files), _seconds(entry.get("status") or {}), max(seen or (), default=None))

    def node(self, name: str) -> Mapping[str, Any] | None:
        """What the server says of a node by its type; None where it has no such node."""
        found = self._json(f"/object_info/{urllib.parse.quote(name)}").get(name)
        return found if isinstance(found, dict) else None

    def memory(self) -> float | None:
        """GiB of its first device that are in use; None where it does not say."""
        device = (self._json("/system_stats").get("devices") or [{}])[0]
        total, free = device.get("vram_total"), device.get("vram_free")
        if not isinstance(total, int) or not isinstance(free, int):
            return None
        return (total - free) / 2**30

    def _wait(self, asked: str, seen: list[float] | None = None) -> Mapping[str, Any]:
        """The history's entry of a graph that is done; `seen` gets the memory at each look."""
        while True:
            if seen is not None and (used := self.memory()) is not None:
                seen.append(used)
            queued = self._is_queued(asked)  # asked first: what leaves the queue is in the history
            entry = self._json(f"/history/{urllib.parse.quote(asked)}").get(asked)
            status = (entry or {}).get("status") or {}
            if status.get("status_str") == "error":
                raise GraphFailed(f"the graph failed in ComfyUI: {_words(status)}")
            if status.get("completed"):
                return entry
            if not queued and entry is None:
                raise ValueError(
                    "the graph left ComfyUI's queue without a result: somebody removed it; start "
                    "again to go on"
                )
            time.sleep(self.poll)

    def _is_queued(self, asked: str) -> bool:
        queue = self._json("/queue")
        items = [*(queue.get("queue_running") or ()), *(queue.get("queue_pending") or ())]
        return any(asked in item[:2] for item in items)

    def _json(
        self, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> dict[str, Any]:
        answer = load_json(self._get(path, body, kind), f"the answer of {self.url}", MOST_ANSWER)
        if not isinstance(answer, dict):
            raise ValueError(f"{self.url}{path} answers with no object; is it ComfyUI?")
        return answer

    def _get(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        asked = urllib.request.Request(self.url + path, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
                content = answer.read(MOST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            said = error.read(4 * LONGEST).decode("utf-8", "replace")
            raise ValueError(
                f"ComfyUI at {self.url} refused: {error.code}, {said[:LONGEST]!r}"
            ) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ValueError(
                f"no ComfyUI answers at {self.url} ({getattr(error, 'reason', error)}); start it, "
                "or name its address with --draw"
            ) from None
        if len(content) > MOST_ANSWER:
            raise ValueError(f"{self.url} answers with more than {MOST_ANSWER} bytes")
        return content


def _seconds(status: Mapping[str, Any]) -> float | None:
    """From the start of a graph to its end, by the server's clock."""
    at = {}
    for kind, said in _messages(status):
        if isinstance(said.get("timestamp"), int):
            at[kind] = said["timestamp"]
    if "execution_start" not in at or "execution_success" not in at:
        return None
    return (at["execution_success"] - at["execution_start"]) / 1000


def _messages(status: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """Pairs of a kind and what is said with it; others are left out."""
    said = [each for each in status.get("messages") or [] if isinstance(each, list)]
    return [(each[0], each[1]) for each in said if len(each) == 2 and isinstance(each[1], dict)]


def _words(status: Mapping[str, Any]) -> str:
    for kind, said in _messages(status):
        if kind == "execution_error":
            text = f"{said.get('node_type')}: {said.get('exception_message')}"
            return repr(text[:LONGEST])
    return "it says no more"
