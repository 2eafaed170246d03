"""Random damage to every kind of file: no crash, no hang, no silent change, and sentences.

A few seconds' worth each; `--mutations 2000` makes a long run of it (see tests/README.md).
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmdiff_core.checkpoints import checkpoint, tensor_file
from mmdiff_core.checkpoints.checkpoint import CheckpointError
from mmdiff_core.checkpoints.subject_file import SubjectFileError, load_subject, save_subject
from mmdiff_core.training.run.errors import RunError

from support import small_files
from support.mutations import dumps, judge, mutated_bytes, mutated_json
from support.subjects import ADAPTER, subject


def with_header(data: bytes, rng: random.Random, sign: bool) -> bytes:
    """A .safetensors file with one thing in its header changed; `sign`: and its checksum made to
    fit again, as a stranger who means it would."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.6:  # the texts in the metadata are JSON themselves
        texts = header["__metadata__"]
        key = rng.choice(sorted(texts))
        if texts[key].startswith("{"):
            texts[key] = dumps(mutated_json(json.loads(texts[key]), rng))
        else:
            texts[key] = dumps(mutated_json([texts[key]], rng))[1:-1][:3000]
    else:
        header = mutated_json(header, rng)
    text = dumps(header).replace(": ", ":").replace(", ", ",").encode()
    whole = struct.pack("<Q", len(text)) + text + data[8 + length :]
    return signed(whole, len(text)) if sign else whole


def signed(data: bytes, length: int) -> bytes:
    digest = tensor_file._Digest()
    digest.add_header(data[: 8 + length])
    digest.add(data[8 + length :])
    return tensor_file.WRITTEN_CHECKSUM.sub(
        b'"checksum":"%s"' % digest.text().encode(), data, count=1
    )


# ---------------------------------------------------------------- adapters


def plausible(found: tuple) -> bool:
    """What a stranger who signs his file may get in: another adapter, whole and finite."""
    config, flat = found
    checkpoint.check(config, flat, "x")
    return 0 <= config.refiner_depth <= 64


def test_damage_to_a_single_file_adapter(tmp_path, tally, mutations):
    path = tmp_path / "a.safetensors"
    config = small_files.CONFIG
    checkpoint.save_single(path, config, small_files.adapter_tensors(config), torch.float32)
    data, original = path.read_bytes(), checkpoint.read(path)
    for number in range(mutations):
        rng = random.Random(number)
        kind = number % 4
        changed = with_header(data, rng, kind == 1) if kind <= 1 else mutated_bytes(data, rng)
        path.write_bytes(changed)
        same = plausible if kind == 1 else lambda found: small_files.equal([*found], [*original])
        judge(tally, number, lambda: checkpoint.read(path), same, (CheckpointError,))


@pytest.mark.parametrize("file", ["unet_adapter_weights.bin", "custom_weights.bin"])
def test_damage_to_an_official_folder(tmp_path, tally, mutations, file):
    small_files.write_official(tmp_path / "folder")
    path = tmp_path / "folder" / file
    data, original = path.read_bytes(), checkpoint.read(tmp_path / "folder")
    for number in range(mutations // 4):
        rng = random.Random(number)
        if number % 3:
            path.write_bytes(mutated_bytes(data, rng))
        else:
            repacked(data, path, rng)
        judge(
            tally,
            number,
            lambda: checkpoint.read(tmp_path / "folder"),
            lambda found: small_files.equal([*found], [*original]),
            (CheckpointError, FileNotFoundError),
        )


def repacked(data: bytes, path: Path, rng: random.Random) -> None:
    """The archive written anew with one member damaged, under a CRC that fits."""
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        held = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice([n for n in held if n.endswith("data.pkl")] * 8 + [*held])
    if "/data/" not in name:  # a CRC that fits makes other weights of other bytes
        held[name] = mutated_bytes(held[name], rng)
    packing = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", packing) as archive:
        for member, content in held.items():
            archive.writestr(member, content)


# ---------------------------------------------------------------- subjects


def test_damage_to_a_subject(tmp_path, tally, mutations):
    path = tmp_path / "ann.safetensors"
    save_subject(path, subject())
    data, original = path.read_bytes(), vars(load_subject(path, ADAPTER))
    for number in range(mutations):
        rng = random.Random(number)
        kind = number % 4
        changed = with_header(data, rng, kind == 1) if kind <= 1 else mutated_bytes(data, rng)
        path.write_bytes(changed)
        judge(
            tally,
            number,
            lambda: load_subject(path, ADAPTER),
            whole_subject if kind == 1 else lambda s: small_files.equal(vars(s), original),
            (SubjectFileError,),
        )


def whole_subject(found) -> bool:
    tensors = [found.tokens, *found.words.values()]
    finite = all(tensor.isfinite().all() for tensor in tensors)
    return finite and found.tokens.ndim == 2 and 1 <= found.references <= 4096


# ---------------------------------------------------------------- states of a run


def damaged_state(folder: Path, rng: random.Random, mutate: Callable) -> None:
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(dumps(mutated_json(json.loads(path.read_text()), rng)))
    elif rng.random() < 0.05:
        path.unlink()
    else:
        path.write_bytes(mutate(path.read_bytes(), rng))


def test_damage_to_a_state_of_a_run(tmp_path, tally, mutations):
    original = small_files.write_state(tmp_path / "whole")
    for number in range(mutations):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        damaged_state(folder / "state-00000005", random.Random(number), mutated_bytes)
        judge(
            tally,
            number,
            lambda folder=folder: small_files.read_state_whole(folder),
            lambda found: small_files.equal(found, original),
            (RunError, ValueError),
        )
