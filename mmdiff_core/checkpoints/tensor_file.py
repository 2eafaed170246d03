"""A .safetensors file: its table is read and checked first, its tensors when somebody asks.

Files that this pack writes carry a checksum of themselves, in the header, so that a changed byte is
found. Files without one (other tools', older versions') are read as well.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..untrusted import load_json, plain, quoted
from .errors import FileError

MOST_HEADER = 1 << 23  # bytes
MOST_TENSORS = 50_000
MOST_SIDE = 1 << 40
CHUNK = 1 << 22
CHECKSUM = "checksum"
UNKNOWN_YET = "0" * 32
WRITTEN_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{32})"')

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """A tensor as the table has it; its bytes begin at `start` behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def ndim(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """A file whose table is whole.

    header  the strings of its metadata
    table   its tensors by name
    begin   where the tensors' bytes begin in the file
    """

    path: Path
    header: dict[str, str]
    table: dict[str, Entry]
    begin: int

    @property
    def name(self) -> str:
        return plain(self.path.name)

    def read(self) -> dict[str, Tensor]:
        """All tensors, in memory of their own. FileError when the checksum is not theirs."""
        expected, digest, found = self.header.get(CHECKSUM), _Digest(), {}
        with self.path.open("rb") as file:
            digest.add_header(file.read(self.begin))
            for key, entry in sorted(self.table.items(), key=lambda item: item[1].start):
                data = bytearray(entry.size)
                if file.readinto(data) != entry.size:
                    raise FileError(f"{self.name} ends within {quoted(key)}; {DOWNLOAD}")
                if expected is not None:
                    digest.add(data)
                found[key] = as_tensor(data, entry.dtype, entry.shape)
        if expected is not None and digest.text() != expected:
            raise FileError(
                f"{self.name} is not as it was written: its checksum differs. It was damaged, or "
                "changed by another program; copy or download it again"
            )
        return {key: found[key] for key in self.table}


DOWNLOAD = "is the download complete?"


class _Digest:
    """The checksum of a file: of all its bytes, with zeros where it stands itself."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add_header(self, head: bytes) -> None:
        self._hash.update(WRITTEN_CHECKSUM.sub(b'"checksum":"%s"' % UNKNOWN_YET.encode(), head))

    def add(self, data: bytes | bytearray) -> None:
        self._hash.update(data)

    def text(self) -> str:
        return self._hash.hexdigest()


def as_tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The bytes as a tensor that holds on to them."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


# ---------------------------------------------------------------- reading


def check_regular(path: Path) -> int:
    """The size of an ordinary file. FileError for none: opening a pipe would wait for ever."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is not one of a file"
        raise FileError(f"{plain(path.name)} cannot be read: {reason}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"{plain(path.name)} cannot be read: it is not an ordinary file")
    return found.st_size


def open_tensor_file(path: Path) -> TensorFile:
    """The header of a .safetensors file, checked against the file's size.

    FileError: it is no such file, or is damaged. No tensor is read.
    """
    size, name = check_regular(path), plain(path.name)
    try:
        with path.open("rb") as file:
            text = _header_text(file, size, name)
    except OSError as error:
        raise FileError(f"{name} cannot be read: {error.strerror}") from error
    try:
        listed = load_json(text, "its header", MOST_HEADER)
        header, table = _checked(listed, size - 8 - len(text))
    except ValueError as error:
        raise FileError(f"{name} cannot be read as safetensors ({error}): {DOWNLOAD}") from error
    if CHECKSUM in header and len(WRITTEN_CHECKSUM.findall(text)) != 1:
        raise FileError(
            f"{name} is not as it was written: its header was changed by another program; copy or "
            "download it again"
        )
    return TensorFile(path, header, table, 8 + len(text))


def _header_text(file: BinaryIO, size: int, name: str) -> bytes:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise FileError(
            f"{name} cannot be read as safetensors (it has {size} bytes, too few for the header "
            f"that it announces): {DOWNLOAD}"
        )
    if length > MOST_HEADER:
        raise FileError(
            f"{name} cannot be read as safetensors (its header has {length} bytes, expected at "
            f"most {MOST_HEADER})"
        )
    return file.read(length)


def _checked(listed: Any, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """Metadata and table of a parsed header, for `size` bytes of tensors. ValueError."""
    if not isinstance(listed, dict) or len(listed) > MOST_TENSORS:
        raise ValueError(f"its header is {quoted(listed)}, expected a table of tensors")
    header = listed.pop("__metadata__", {})
    if not isinstance(header, dict) or not all(isinstance(v, str) for v in header.values()):
        raise ValueError(f"its metadata is {quoted(header)}, expected texts by name")
    table = {key: _entry(key, told) for key, told in listed.items()}
    end = 0
    for key, entry in sorted(table.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != end:
            raise ValueError(f"{quoted(key)} begins at byte {entry.start}, expected {end}")
        end += entry.size
    if end != size:
        raise ValueError(f"it has {size} bytes of tensors, its header lists {end}")
    return header, table


def _entry(key: str, told: Any) -> Entry:
    if not isinstance(told, dict) or set(told) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{quoted(key)} is {quoted(told)}, expected dtype, shape, data_offsets")
    kind, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"{quoted(key)} has dtype {quoted(kind)}, expected one of {[*DTYPES]}")
    if not _whole_numbers(shape) or len(shape) > 8:
        raise ValueError(f"{quoted(key)} has shape {quoted(shape)}, expected whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"{quoted(key)} has data_offsets {quoted(offsets)}, expected two numbers")
    dtype, size = DTYPES[kind], offsets[1] - offsets[0]
    if size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{quoted(key)} has {size} bytes for {quoted(shape)} of {kind}")
    return Entry(dtype, tuple(shape), offsets[0], size)


def _whole_numbers(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(type(v) is int and 0 <= v <= MOST_SIDE for v in values)


# ---------------------------------------------------------------- writing


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a file with its checksum; it appears under its name only when it is whole."""
    part = path.with_name(path.name + ".part")
    apart = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    try:
        save_file(apart, str(part), metadata={**header, CHECKSUM: UNKNOWN_YET})
        _sign(part)
        part.replace(path)
    except (OSError, SafetensorError):
        part.unlink(missing_ok=True)
        raise


def _sign(path: Path) -> None:
    """Put the checksum where its zeros stand."""
    digest = _Digest()
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        head = file.read(8 + length)
        digest.add_header(head)
        while data := file.read(CHUNK):
            digest.add(data)
        file.seek(WRITTEN_CHECKSUM.search(head).start(1))
        file.write(digest.text().encode())
