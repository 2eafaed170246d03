"""Random prompts through a server, some of them interrupted, and what became of them."""

from __future__ import annotations

import hashlib
import statistics
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from support.random_prompts import random_prompt
from support.server import Server


@dataclass
class Soak:
    """What became of the prompts.

    hashes   of the latents, by the prompt's number
    memory   MiB of the server after each prompt
    seconds  that a prompt took which was not interrupted
    """

    seed: int = 0
    hashes: dict[int, str] = field(default_factory=dict)
    interrupted: int = 0
    failures: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def run(self, server: Server, number: int, interrupt_after: float | None = None) -> None:
        """Run one prompt, or interrupt it after that share of the time that prompts take."""
        began = time.monotonic()
        asked = server.queue(random_prompt(number, self.seed))
        if interrupt_after is not None and self.seconds:
            time.sleep(interrupt_after * statistics.median(self.seconds))
            interrupt(server)
        entry = server.wait(asked)
        said = [kind for kind, _ in entry["status"]["messages"]]
        if "execution_interrupted" in said:
            self.interrupted += 1
        elif entry["status"]["status_str"] != "success":
            self.failures.append(f"prompt {number}: {entry['status']['messages'][-1]}")
        else:
            self.seconds.append(time.monotonic() - began)
            self.keep(server, number)

    def keep(self, server: Server, number: int) -> None:
        """Remember the latent of a prompt, and delete its file."""
        for path in (server.home / "output").glob(f"soak_{number:05}*.latent"):
            found = hashlib.sha256(latent_bytes(path)).hexdigest()
            before = self.hashes.setdefault(number, found)
            if before != found:
                self.failures.append(f"prompt {number}: another latent than before")
            path.unlink()
        if number not in self.hashes:
            self.failures.append(f"prompt {number}: no latent was saved")


def interrupt(server: Server) -> None:
    """Interrupt what runs; the server answers without a body."""
    request = urllib.request.Request(server.url + "/interrupt", data=b"", method="POST")
    urllib.request.urlopen(request, timeout=60).close()


def latent_bytes(path: Path) -> bytes:
    """The tensor of a saved latent; the header holds the prompt."""
    from safetensors.torch import load_file

    return load_file(path)["latent_tensor"].numpy().tobytes()


def memory_of(process: int) -> float:
    """MiB that a process holds (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
