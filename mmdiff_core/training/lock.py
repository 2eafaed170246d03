"""A lock on what one process at a time may write: a run's folder, a file of annotations.

The operating system holds it, so it ends with the process, however that ends. The lock's file
stays: whoever removed it could remove the next one's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

if os.name == "nt":
    import msvcrt
else:
    import fcntl

AT = 1 << 30  # the byte that is locked on Windows, behind the text


class LockedError(ValueError):
    """Somebody else writes there; the message says who and what to do."""


class Lock:
    """A lock by the file at `path`. Taken by `acquire`, left by `release` or at the end of a with
    block.

    what    what is locked, for the message
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        """Take the lock. LockedError where another process, or another call in this one, has it,
        or where the file system knows no locks; OSError where the folder cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b")
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            holder = self._holder(file)
            file.close()
            raise LockedError(
                f"{self.what} is in use by another process{holder}: two at once would mix their "
                "results. Wait until it ends, or choose another place"
            ) from error
        except OSError as error:
            file.close()
            raise LockedError(
                f"{self.what} cannot be locked ({error.strerror}): choose a place on a file system "
                "that knows locks"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}\n".encode())
        file.flush()
        self._file = file

    def _holder(self, file: BinaryIO) -> str:
        file.seek(0)
        number = file.read(40).removeprefix(b"process ").strip()
        return f" ({int(number)})" if number.isdigit() else ""

    def release(self) -> None:
        """Leave the lock, if it was taken."""
        if self._file is not None:
            _unlock(self._file)
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _lock(file: BinaryIO) -> None:
    if os.name == "nt":
        file.seek(AT)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlock(file: BinaryIO) -> None:
    if os.name == "nt":
        file.seek(AT)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_UN)
