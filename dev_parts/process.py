"""Child processes, and what is said while they run."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

STARTED = time.monotonic()


class DevError(Exception):
    """Something the person who runs this can act on; its text is shown without a traceback."""


def say(text: str) -> None:
    """Print a progress line with the seconds since the start, at once."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def tail(log: Path, lines: int = 40) -> str:
    """The end of a log file, or a word that there is none."""
    if not log.is_file():
        return f"(no log at {log})"
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def stop(process: subprocess.Popen[bytes], patience: float = 10) -> None:
    """End a child process: ask first, then insist."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def step(label: str, command: Sequence[str | Path], log: Path, every: float = 10) -> None:
    """Run one long command with its output in a log, show that it is alive, and show the log's end
    if it fails.
    """
    begin = time.monotonic()
    say(f"{label} ...")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(every)
                if process.returncode is None:
                    say(f"  {label}: {time.monotonic() - begin:.0f} s so far")
        finally:
            stop(process)
    if process.returncode:
        raise DevError(
            f"{label} failed (exit status {process.returncode}). The end of {log}:\n{tail(log)}"
        )
    say(f"{label}: done in {time.monotonic() - begin:.1f} s")
