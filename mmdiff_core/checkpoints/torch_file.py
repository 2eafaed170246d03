"""A file of torch.save (.bin, .pth, .pt): read without running anything in it.

It is a zip archive of one description and the tensors' bytes. Only stored members are read
(torch.save never compresses; a packed one could hold any amount), and every member against its
CRC. The description is read by `pickled`, not by Python's unpickler.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..untrusted import plain, quoted
from .errors import FileError
from .pickled import MoreThanWeights, Storage, StoredTensor, describe
from .tensor_file import DOWNLOAD, as_tensor, check_regular

# CVE-2025-32434: before 2.6, torch ran code from such files even when asked for weights only
OLDEST_TORCH = (2, 6)
MOST_MEMBERS = 50_000
MOST_DESCRIPTION = 1 << 24  # bytes
MOST_UNUSED = 1 << 20
MOST_DEPTH = 20
ENCRYPTED = 0x1
# what torch.save calls its members, below one folder
NAMES = re.compile(r"[^/\\\x00-\x1f]+/(data\.pkl|byteorder|version|\.[\w/.]+|data/\d+)")


@dataclass(frozen=True)
class TorchFile:
    """A file whose members are stored and as large as its tensors need.

    tree    what was saved: dictionaries, lists and plain values, with a `StoredTensor` for every
            tensor
    """

    path: Path
    tree: Any
    members: dict[str, zipfile.ZipInfo]

    @property
    def name(self) -> str:
        return plain(self.path.name)

    def read(self) -> Any:
        """What was saved, with its tensors. FileError when a member is damaged."""
        used = {f"data/{storage.key}": storage for storage in _storages(self.tree)}
        made: dict[str, Tensor] = {}
        with _explained(self.name), zipfile.ZipFile(self.path) as archive:
            for inner, member in self.members.items():
                held = archive.read(member)  # all of them: each against its CRC
                if inner in used:
                    storage = used[inner]
                    made[storage.key] = as_tensor(bytearray(held), storage.dtype, (storage.count,))
        return _filled(self.tree, made, {}, self.name)


def open_torch_file(path: Path) -> TorchFile:
    """The description of a file, checked against its members. No tensor is read.

    FileError: torch is too old, or the file is none of torch.save, is damaged, is packed, or holds
    more than weights.
    """
    name = plain(path.name)
    _check_torch(name)
    size = check_regular(path)
    if not zipfile.is_zipfile(path):
        raise FileError(
            f"{name} cannot be read: it is no file of torch.save, or one from before torch 1.6; "
            f"{DOWNLOAD}"
        )
    with _explained(name), zipfile.ZipFile(path) as archive:
        members = _members(archive, name, size)
        _check_byteorder(archive, members, name)
        tree = _described(archive, members, name)
    used = _storages(tree)
    _check_sizes(members, used, name)
    return TorchFile(path, tree, members)


def _check_torch(name: str) -> None:
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < OLDEST_TORCH:
        raise FileError(
            f"{name} needs torch 2.6 or newer, this is torch {plain(torch.__version__)}: before "
            "2.6, files of this kind could run code (CVE-2025-32434). Update torch, or convert the "
            "checkpoint to .safetensors on another computer"
        )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Tell what zipfile raises for a damaged archive in words of this pack."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:  # BadZipFile, struct.error, EOFError, NotImplementedError, ...
        raise FileError(f"{name} cannot be read: its archive is damaged; {DOWNLOAD}") from error


def _members(archive: zipfile.ZipFile, name: str, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by their names below the archive's one folder."""
    found: dict[str, zipfile.ZipInfo] = {}
    listed = archive.infolist()
    for member in listed[:MOST_MEMBERS]:
        folder, _, inner = member.filename.partition("/")
        if not NAMES.fullmatch(member.filename) or inner in found:
            raise FileError(
                f"{name} cannot be read: its archive holds {quoted(member.filename)}, which "
                "torch.save does not write"
            )
        packed = member.compress_type != zipfile.ZIP_STORED
        if packed or member.flag_bits & ENCRYPTED or member.compress_size != member.file_size:
            raise FileError(
                f"{name} is a compressed archive ({quoted(member.filename)} is packed); "
                "torch.save stores its members as they are. Save it again with torch.save"
            )
        found[inner] = member
    if len(listed) > MOST_MEMBERS or sum(member.file_size for member in listed) > size:
        raise FileError(f"{name} cannot be read: its archive lists more than the file can hold")
    if "data.pkl" not in found or len({m.filename.partition("/")[0] for m in listed}) > 1:
        raise FileError(f"{name} cannot be read: its archive is none of torch.save")
    return found


def _check_byteorder(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str
) -> None:
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise FileError(f"{name} was saved on a computer with another byte order; convert it there")


def _described(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str) -> Any:
    member = members["data.pkl"]
    if member.file_size > MOST_DESCRIPTION:
        raise FileError(f"{name} cannot be read: its description has {member.file_size} bytes")
    try:
        return describe(archive.read(member))
    except MoreThanWeights as error:
        raise MoreThanWeights(
            f"{name} contains more than weights ({error}); loading it could run code, so it is "
            "refused"
        ) from error
    except FileError as error:
        raise FileError(f"{name} cannot be read: {error}; {DOWNLOAD}") from error


def _check_sizes(members: dict[str, zipfile.ZipInfo], used: set[Storage], name: str) -> None:
    """Every storage is there, as large as the description says; little else is."""
    if len({storage.key for storage in used}) < len(used):
        raise FileError(f"{name} cannot be read: it describes one member in two ways; {DOWNLOAD}")
    for storage in used:
        member, size = members.get(f"data/{storage.key}"), storage.count * storage.dtype.itemsize
        if member is None or member.file_size != size:
            found = "missing" if member is None else f"{member.file_size} bytes"
            raise FileError(
                f"{name} cannot be read: member {quoted(storage.key)} of its archive is {found}, "
                f"expected {size} bytes; {DOWNLOAD}"
            )
    kept = {f"data/{storage.key}" for storage in used} | {"data.pkl"}
    unused = sum(m.file_size for inner, m in members.items() if inner not in kept)
    if unused > MOST_UNUSED:
        raise FileError(f"{name} holds {unused} bytes that belong to no weight")


# ---------------------------------------------------------------- the tree


def _storages(tree: Any) -> set[Storage]:
    """All storages of a tree. Each container is visited once, however often it is referred to."""
    found, seen, left = set(), set(), [tree]
    while left:
        value = left.pop()
        if isinstance(value, StoredTensor):
            found.add(value.storage)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return found


def _filled(
    value: Any, made: dict[str, Tensor], done: dict[int, Any], name: str, depth: int = 0
) -> Any:
    """The tree with its tensors; what it refers to twice stays one thing."""
    if isinstance(value, StoredTensor):
        return made[value.storage.key].as_strided(value.shape, value.stride, value.offset)
    if not isinstance(value, (dict, list, tuple)):
        return value
    if depth > MOST_DEPTH:
        raise FileError(f"{name} cannot be read: what it holds is nested too deeply")
    if id(value) not in done:
        inner = value.values() if isinstance(value, dict) else value
        filled = [_filled(part, made, done, name, depth + 1) for part in inner]
        keyed = isinstance(value, dict)
        done[id(value)] = dict(zip(value, filled)) if keyed else type(value)(filled)
    return done[id(value)]
