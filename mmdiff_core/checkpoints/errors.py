"""What is wrong with a file, in words of this pack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FileError(ValueError):
    """A file that cannot be used: what was found, what was expected, what to do."""


class CheckpointError(FileError):
    """A checkpoint that cannot be used; the message says which key, what was found and expected,
    and why."""


class SubjectFileError(FileError):
    """A file that is not a subject, or not one of this adapter: what was found, what was expected,
    what to do."""


@contextmanager
def told_as(kind: type[FileError], name: str = "") -> Iterator[None]:
    """Turn what a file's container or header is refused for into this kind of error.

    name    of the file, put before what a record's own checks say
    """
    try:
        yield
    except kind:
        raise
    except FileError as error:
        raise kind(str(error)) from error
    except ValueError as error:
        raise kind(f"{name}: {error}" if name else str(error)) from error
