"""A subject as a file that people keep: one .safetensors with its tokens, words, identity and small
pictures of its references.

Nothing of the graph is in it (region, weights per picture), and nothing that runs code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..config import MMDiffConfig
from ..method.subjects import Subject
from ..untrusted import STRICT, fill, plain, quoted
from .contents import out_of_range
from .errors import SubjectFileError, told_as
from .tensor_file import Entry, open_tensor_file, write_tensor_file

__all__ = ["SIDE", "SubjectFileError", "load_subject", "save_subject"]

FORMAT, VERSION = "mmdiff-subject", "1"
TOKENS, WORD = "tokens", "words."
SIDE = 64  # of the thumbnails
TENSORS = {"identity": "identity", "thumbnails": "pictures_seen"}  # field -> key in the file

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MOST_REFERENCES = 4096
MOST_PER_REFERENCE = 64  # tokens
MOST_WIDTH = 65536
UNIT = 1.01  # of a unit vector, in any precision
AGAIN = "encode its references again"


@dataclass(frozen=True)
class _Header:
    """The header's texts, all of them."""

    __pydantic_config__ = STRICT

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    adapter: Annotated[str, Field(max_length=100)]
    references: Annotated[str, Field(max_length=9)]
    encoder: Annotated[str, Field(max_length=100)] = ""
    weight: Annotated[str, Field(max_length=30)] = "1.0"

    def __post_init__(self) -> None:
        if re.search(r"[\x00-\x1f\x7f-\x9f]", f"{self.name}{self.adapter}{self.encoder}"):
            raise ValueError("a text in it has control characters")
        whole = re.fullmatch("[0-9]+", self.references)
        if not whole or not 1 <= int(self.references) <= MOST_REFERENCES:
            found = quoted(self.references)
            raise ValueError(f"references is {found}, expected 1 to {MOST_REFERENCES}")
        if not re.fullmatch(r"[0-9.e+-]+", self.weight) or not 0 <= _number(self.weight) <= 100:
            raise ValueError(f"weight is {quoted(self.weight)}, expected a number from 0 to 100")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def save_subject(path: Path, subject: Subject, weight: float = 1.0) -> None:
    """Write one subject, and the weight it had; the file appears under its name only when it is
    whole. SubjectFileError for a name or a number that could not be read again."""
    tensors = {
        TOKENS: subject.tokens,
        **{f"{WORD}{encoder}": vector for encoder, vector in subject.words.items()},
    }
    for field, key in TENSORS.items():
        value = getattr(subject, field)
        if value is not None:
            tensors[key] = value
    header = {
        "format": FORMAT,
        "format_version": VERSION,
        "name": subject.name,
        "adapter": subject.adapter,
        "encoder": subject.encoder,
        "references": str(subject.references),
        "weight": repr(float(weight)),
    }
    with told_as(SubjectFileError):
        fill(_Header, {key: header[key] for key in _FIELDS}, f"the subject {quoted(subject.name)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensor_file(path, tensors, header)


def load_subject(
    path: Path,
    adapter: str,
    adapter_name: str = "the connected MM-Diff checkpoint",
    config: MMDiffConfig | None = None,
) -> Subject:
    """Read one subject for the adapter with this fingerprint.

    config  of that adapter: with it, the widths are checked too

    SubjectFileError when it is none, is damaged, or was made by another.
    """
    name = plain(path.name)
    with told_as(SubjectFileError):
        file = open_tensor_file(path)
        _check_format(file.header, set(file.table), name)
        known = {key: file.header[key] for key in _FIELDS if key in file.header}
        header = fill(_Header, known, f"the header of {name}")
        _check_adapter(header.adapter, adapter, adapter_name, name)
        _check_table(file.table, int(header.references), name)
        if config is not None:
            _check_widths(file.table, int(header.references), config, name)
        tensors = file.read()
    _check_values(tensors, name)
    words = {key.removeprefix(WORD): v for key, v in tensors.items() if key.startswith(WORD)}
    return Subject(
        name=header.name,
        tokens=tensors[TOKENS],
        words=words,
        references=int(header.references),
        adapter=header.adapter,
        encoder=header.encoder,
        **{field: tensors.get(key) for field, key in TENSORS.items()},
    )


_FIELDS = ("name", "adapter", "references", "encoder", "weight")


def _check_format(header: Mapping[str, str], keys: set[str], name: str) -> None:
    if header.get("format") != FORMAT or TOKENS not in keys:
        raise SubjectFileError(
            f"{name} is not a subject (its format is {quoted(header.get('format'))}); expected a "
            "file written by Save MM-Diff Subject"
        )
    if header.get("format_version") != VERSION:
        version = header.get("format_version")
        raise SubjectFileError(
            f"{name} has subject format {quoted(version)}, this pack reads {VERSION!r}; update the "
            "pack"
        )


def _check_adapter(found: str, adapter: str, adapter_name: str, name: str) -> None:
    if found != adapter:
        raise SubjectFileError(
            f"{name} was encoded with another MM-Diff checkpoint ({plain(found)}) than "
            f"{plain(adapter_name)} ({adapter}); load the checkpoint it was encoded with, or "
            f"{AGAIN}"
        )


def _check_table(table: Mapping[str, Entry], references: int, name: str) -> None:
    """Kinds and sizes of the tensors, before any is read."""
    for key, entry in table.items():
        floats, shape = entry.dtype in FLOATS, entry.shape
        vector = entry.ndim == 1 and 1 <= shape[0] <= MOST_WIDTH if entry.ndim else False
        if key == TOKENS:
            most = MOST_PER_REFERENCE * references
            fits = floats and entry.ndim == 2 and shape[0] <= most and 1 <= shape[1] <= MOST_WIDTH
            expected = f"float [tokens, width] with at most {most} tokens"
        elif re.fullmatch(rf"{re.escape(WORD)}[a-z0-9_]{{1,16}}", key) or key == "identity":
            fits, expected = floats and vector, "float [width]"
        elif key == TENSORS["thumbnails"]:
            fits = entry.dtype == torch.uint8 and shape[1:] == (SIDE, SIDE, 3)
            fits = fits and 1 <= shape[0] <= MOST_REFERENCES
            expected = f"uint8 [references, {SIDE}, {SIDE}, 3]"
        else:
            raise SubjectFileError(f"{name} has the unknown tensor {quoted(key)}; {AGAIN}")
        if not fits:
            found = f"{entry.dtype} {list(shape)}".removeprefix("torch.")
            raise SubjectFileError(f"{name}: {plain(key)} is {found}, expected {expected}; {AGAIN}")


def _check_widths(
    table: Mapping[str, Entry], references: int, config: MMDiffConfig, name: str
) -> None:
    """The sizes that the adapter gives its subjects."""
    tokens, each = table[TOKENS].shape, config.tokens_per_reference
    if tokens[1] != config.context_width or tokens[0] % each or tokens[0] > each * references:
        raise SubjectFileError(
            f"{name}: tokens is {list(tokens)}, expected {each} for each of {references} "
            f"references, {config.context_width} wide; {AGAIN}"
        )
    expected = {f"{WORD}{encoder}": (width,) for encoder, width in config.text_widths.items()}
    found = {key: entry.shape for key, entry in table.items() if key.startswith(WORD)}
    if found != expected:
        raise SubjectFileError(f"{name} has {found}, expected {expected}; {AGAIN}")
    if "identity" in table and table["identity"].shape != (config.query_width,):
        width = table["identity"].shape[0]
        raise SubjectFileError(
            f"{name}: identity is {width} wide, expected {config.query_width}; {AGAIN}"
        )


def _check_values(tensors: Mapping[str, Tensor], name: str) -> None:
    for key, least, most in out_of_range(tensors):
        raise SubjectFileError(
            f"{name} contains non-finite values: {plain(key)} goes from {least:g} to {most:g}; "
            f"{AGAIN}"
        )
    identity = tensors.get("identity")
    if identity is not None and float(identity.float().norm()) > UNIT:
        raise SubjectFileError(f"{name}: identity is no unit vector; {AGAIN}")
