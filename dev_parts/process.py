"""Child processes, and what is said while they run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

STARTED = time.monotonic()
INSTALL_LOG = "install.log"
LITTLE = 2**28  # bytes of free disk


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


def take(file: IO[bytes]) -> bool:
    """Lock an open file for this process and the children that inherit it; False if it is taken.

    Without effect on file systems that have no locks, and for children on Windows.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        say(f"{file.name} cannot be locked ({error.strerror}): run only one dev.py at a time")
    return True


def stop(process: subprocess.Popen[bytes], patience: float = 10) -> None:
    """End a child process: ask first, then insist, also when another signal comes meanwhile."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def call(
    command: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] = os.environ
) -> int:
    """Run a child process in the foreground; its exit status. It ends with us."""
    process = subprocess.Popen([str(part) for part in command], cwd=cwd, env=env)
    try:
        return process.wait()
    finally:
        stop(process)


def little_space(folder: Path) -> str:
    """A sentence if the disk is all but full: what fails then may not even be able to say so."""
    free = shutil.disk_usage(folder).free
    if free > LITTLE:
        return ""
    return f"Only {free / 2**20:.0f} MiB are free on the disk of {folder}: make room. "


def step(label: str, command: Sequence[str | Path], log: Path, every: float = 10) -> None:
    """Run one long command with its output in a log, show that it is alive, and show the log's end
    if it fails.
    """
    begin = time.monotonic()
    say(f"{label} ...")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        if os.name != "nt":
            take(out)  # the command inherits it, and keeps it should we be killed
        out.truncate(0)
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
            f"{label} failed (exit status {process.returncode}). {little_space(log.parent)}"
            f"The end of {log}:\n{tail(log)}"
        )
    say(f"{label}: done in {time.monotonic() - begin:.1f} s")
