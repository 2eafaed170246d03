"""The little that is read of an ONNX file besides running it: the names of its first nodes."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator
from pathlib import Path

GRAPH, NODE, NODE_NAME = 7, 1, 3  # field numbers of ModelProto, GraphProto, NodeProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf
LONGEST_VARINT = 10


def first_node_names(path: Path, count: int) -> tuple[str, ...]:
    """The names of a graph's first nodes. ValueError if the file is no protobuf message."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            nodes = itertools.islice(_nodes(view), count)
            return tuple(_text(node, NODE_NAME) for node in nodes)
        finally:
            view.release()


def _nodes(data: memoryview) -> Iterator[bytes]:
    for number, start, end in _fields(data, 0, len(data)):
        if number == GRAPH:
            for inner, first, last in _fields(data, start, end):
                if inner == NODE:
                    yield bytes(data[first:last])


def _text(message: bytes, wanted: int) -> str:
    for number, start, end in _fields(memoryview(message), 0, len(message)):
        if number == wanted:
            return message[start:end].decode("utf-8", "replace")
    return ""


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field of a message that is a string or a message itself."""
    while at < end:
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            _, at = _varint(data, at, end)
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        elif kind == BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise ValueError(f"a field of {length} bytes where {end - at} are left")
            yield number, at, at + length
            at += length
        else:
            raise ValueError(f"a field of the unknown type {kind}")


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """A number, 7 bits a byte from the lowest, and where it ends."""
    value = 0
    for place in range(LONGEST_VARINT):
        if at >= end:
            break
        byte = data[at]
        value, at = value | (byte & 127) << 7 * place, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number that does not end")
