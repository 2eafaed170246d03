"""A subject as a file that people keep: one .safetensors with its tokens, words, identity and small
pictures of its references.

Nothing of the graph is in it (region, weights per picture), and nothing that runs code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..method.subjects import Subject

FORMAT, VERSION = "mmdiff-subject", "1"
WORD = "words."
SIDE = 64  # of the thumbnails
TENSORS = {"identity": "identity", "thumbnails": "pictures_seen"}  # field -> key in the file


class SubjectFileError(ValueError):
    """A file that is not a subject, or not one of this adapter: what was found, what was expected,
    what to do."""


def save_subject(path: Path, subject: Subject, weight: float = 1.0) -> None:
    """Write one subject, and the weight it had; the file appears under its name only when it is
    whole."""
    tensors = {
        "tokens": subject.tokens,
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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(part), metadata=header
    )
    part.replace(path)


def load_subject(
    path: Path, adapter: str, adapter_name: str = "the connected MM-Diff checkpoint"
) -> Subject:
    """Read one subject for the adapter with this fingerprint. SubjectFileError when it is none, is
    damaged, or was made by another."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SubjectFileError(
            f"{path.name} cannot be read as a subject ({error}); save it again with Save MM-Diff "
            "Subject"
        ) from error
    if header.get("format") != FORMAT or "tokens" not in tensors:
        raise SubjectFileError(
            f"{path.name} is not a subject (its format is {header.get('format')!r}); expected a "
            "file written by Save MM-Diff Subject"
        )
    if header.get("format_version") != VERSION:
        version = header.get("format_version")
        raise SubjectFileError(
            f"{path.name} has subject format {version!r}, this pack reads {VERSION!r}; update the "
            "pack"
        )
    if header["adapter"] != adapter:
        raise SubjectFileError(
            f"{path.name} was encoded with another MM-Diff checkpoint ({header['adapter']}) than "
            f"{adapter_name} ({adapter}); load the checkpoint it was encoded with, or encode its "
            "references again"
        )
    words = {key.removeprefix(WORD): v for key, v in tensors.items() if key.startswith(WORD)}
    if not all(torch.isfinite(t.float()).all() for t in (tensors["tokens"], *words.values())):
        raise SubjectFileError(
            f"{path.name} contains non-finite values; encode its references again"
        )
    return Subject(
        name=header["name"],
        tokens=tensors["tokens"],
        words=words,
        references=int(header["references"]),
        adapter=header["adapter"],
        encoder=header.get("encoder", ""),
        **{field: tensors.get(key) for field, key in TENSORS.items()},
    )
