"""One set-up of .host/ at a time, also after one that was killed while its installer goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .process import INSTALL_LOG, say, take

LOCK = "lock"
LOOK_AGAIN = 0.2  # seconds


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Nobody else sets up `work` as long as the block lasts; waits until that is so.

    The system ends the lock when its process dies. What a killed dev.py started can live on: the
    lock of the log, which installers write to, ends with them.
    """
    work.mkdir(exist_ok=True)
    with (work / LOCK).open("ab") as file:
        wait_for(file, f"Another dev.py is setting up {work}; waiting until it is done ...")
        with (work / INSTALL_LOG).open("ab") as log:
            wait_for(log, f"An installer that was left behind writes to {work}; waiting for it ...")
        yield


def wait_for(file: IO[bytes], why: str) -> None:
    """Take the file's lock, and say once why it takes time."""
    if take(file):
        return
    say(why)
    while not take(file):
        time.sleep(LOOK_AGAIN)
