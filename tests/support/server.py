"""A real ComfyUI server for tests: started once, spoken to over HTTP, stopped at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from support.cases import CHECKPOINT
from support.onnx_stand_ins import write_model_pack
from support.paths import PACK, PACK_NAME, TESTS

START_LIMIT = 400
RUN_LIMIT = 300


class Server:
    """ComfyUI on a free port with its own folders below `home`.

    Further arguments go to its command line.
    """

    def __init__(self, home: Path, *arguments: str):
        self.home, self.output, self.log = home, home / "output", home / "server.log"
        self.arguments = arguments
        self.models, self.loras = home / "mmdiff", home / "loras"
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.process = self._start()
        self._wait()

    def _start(self) -> subprocess.Popen:
        host = Path(os.environ["COMFYUI_PATH"])
        folders = [
            x
            for name in ("output", "input", "temp", "user")
            for x in (f"--{name}-directory", str(self._folder(name)))
        ]
        import torch

        cpu = (
            [] if torch.cuda.is_available() and not os.environ.get("MMDIFF_TEST_CPU") else ["--cpu"]
        )
        command = [
            sys.executable,
            "main.py",
            "--port",
            self.url.rsplit(":", 1)[1],
            "--disable-auto-launch",
            "--database-url",
            "sqlite:///:memory:",
            *folders,
            *cpu,
            "--extra-model-paths-config",
            str(self._extra_paths(host)),
            *self.arguments,
        ]
        with self.log.open("w") as log:
            return subprocess.Popen(
                command,
                cwd=host,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUTF8": "1"},
            )

    def _folder(self, name: str) -> Path:
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        return folder

    def _extra_paths(self, host: Path) -> Path:
        write_model_pack(self._folder("insightface"), "stand_in", detector="centre")
        # finds as many faces as were drawn
        write_model_pack(self._folder("insightface"), "discs", detector="coloured_discs")
        self.models.mkdir(exist_ok=True)
        self.loras.mkdir(exist_ok=True)
        subjects = self._folder("mmdiff_subjects")
        paths = {
            "tests": {
                "custom_nodes": TESTS / "host_nodes",
                "mmdiff": TESTS / "tiny/models/mmdiff",
                "insightface": self.home / "insightface",
            },
            "written": {"mmdiff": self.models, "loras": self.loras, "mmdiff_subjects": subjects},
        }
        if not any(p.resolve() == PACK for p in (host / "custom_nodes").iterdir()):
            linked = self._folder("custom_nodes")
            (linked / PACK_NAME).symlink_to(PACK, target_is_directory=True)
            paths["pack"] = {"custom_nodes": linked}
        text = ""
        for group, entries in paths.items():
            text += f"{group}:\n"
            text += "".join(
                f"  {name}: {json.dumps(str(folder))}\n" for name, folder in entries.items()
            )
        path = self.home / "extra_model_paths.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def _wait(self) -> None:
        end = time.monotonic() + START_LIMIT
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        self.stop()
        raise RuntimeError("the ComfyUI server did not start; its log ends with:\n" + self.tail())

    def tail(self, lines: int = 40) -> str:
        return "\n".join(
            self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        )

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return json.load(answer)

    def post(self, path: str, data: dict):
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def run(self, prompt: dict) -> dict:
        """Queue an API graph and wait for it; its history entry.

        RuntimeError with the server's words where it failed.
        """
        entry = self.wait(self.queue(prompt))
        if not entry["status"]["completed"]:
            raise RuntimeError(_words(entry))
        return entry

    def queue(self, prompt: dict) -> str:
        """Queue an API graph; its id. RuntimeError where the server refuses it."""
        try:
            queued = self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode("utf-8", "replace")) from error
        return queued["prompt_id"]

    def wait(self, asked: str) -> dict:
        """The history entry of a queued prompt once it has ended, completed or not."""
        end = time.monotonic() + RUN_LIMIT
        while time.monotonic() < end:
            entry = self.get(f"/history/{asked}").get(asked)
            if entry and (entry["status"]["completed"] or entry["status"]["status_str"] == "error"):
                return entry
            if self.process.poll() is not None:
                raise RuntimeError("the server died:\n" + self.tail())
            time.sleep(0.05)
        raise RuntimeError(f"no result after {RUN_LIMIT} s:\n" + self.tail())

    def upload(self, path: Path) -> str:
        """Put a picture into the server's input folder; its name there."""
        target = self.home / "input" / path.name
        target.write_bytes(path.read_bytes())
        return path.name

    def offer_checkpoint(self, folder: Path | None) -> str:
        """A name for the checkpoint in a folder, by which this server loads it; None.

        The tests' own checkpoint.
        """
        if folder is None:
            return CHECKPOINT.name
        name = f"brought-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        if not (self.models / name).exists():
            shutil.copytree(folder, self.models / name)
        return name

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _words(entry: dict) -> str:
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_error":
            return f"{message['node_type']}: {message['exception_message']}"
    return json.dumps(entry["status"])


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
