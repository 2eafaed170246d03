"""Checkpoints with something lost, changed or added: refused, in a sentence that names it."""

from __future__ import annotations

import json
import os
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdiff_core.checkpoints import checkpoint, contents, released
from mmdiff_core.checkpoints.checkpoint import CheckpointError
from mmdiff_core.checkpoints.errors import FileError
from mmdiff_core.checkpoints.torch_file import open_torch_file

from support import small_files
from support.cases import CHECKPOINT
from support.damage import change, copy_checkpoint, only
from support.mutations import sentence

# ---------------------------------------------------------------- parts that are gone


@pytest.mark.parametrize(
    "keep, lost",
    [
        (lambda key: False, "attention of text encoder 'l', 'g'"),
        (lambda key: "text_encoder_2" not in key, "attention of text encoder 'g'"),
        (lambda key: "mlp" not in key or "_2" in key, "mlp of text encoder 'l'"),
    ],
    ids=["all", "one encoder", "the mlp of one encoder"],
)
def test_a_text_encoder_that_was_lost_is_not_taken_for_an_untrained_one(tmp_path, keep, lost):
    copy_checkpoint(tmp_path)
    change(tmp_path / released.TEXT_FILE, only(keep))
    with pytest.raises(CheckpointError, match=f"is incomplete: it has no LoRA for the {lost}"):
        checkpoint.load(tmp_path)


def test_every_single_weight_that_is_missing_is_noticed(tmp_path):
    config, flat = checkpoint.read(CHECKPOINT)
    keys = [key for key in flat if key.startswith(("vision.", "text."))]
    for gone in keys:
        left = {key: tensor for key, tensor in flat.items() if key != gone}
        with pytest.raises(CheckpointError, match="missing key|incomplete"):
            contents.check_table(config, left, "x")
            contents.check_whole(config, left, "x")


def test_an_adapter_without_text_or_vision_says_so_in_its_header_and_loads(tmp_path):
    config, flat = checkpoint.read(CHECKPOINT)
    part = {k: v for k, v in flat.items() if not k.startswith(("text.", "vision.vision_model"))}
    checkpoint.save_single(tmp_path / "part.safetensors", config, part)
    assert set(checkpoint.read(tmp_path / "part.safetensors")[1]) == set(part)
    with pytest.raises(CheckpointError, match="is incomplete"):
        checkpoint.save_official(tmp_path / "folder", config, part)


# ---------------------------------------------------------------- numbers


def small(tmp_path: Path, change=None, header=None, config=small_files.CONFIG) -> Path:
    """A small single-file adapter as an older version wrote it: without a checksum."""
    flat = small_files.adapter_tensors(config)
    for key, tensor in (change or {}).items():
        flat[key] = tensor(flat[key])
    path = tmp_path / "a.safetensors"
    told = {"format": "mm-diff", "format_version": "1", "config": config.to_json()}
    told |= {"base": config.base.to_json()} | (header or {})
    save_file({k: v.contiguous() for k, v in flat.items()}, str(path), metadata=told)
    return path


def test_a_file_of_an_older_version_loads(tmp_path):
    assert checkpoint.load(small(tmp_path)).config == small_files.CONFIG


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_no_weight_is_named_with_its_file_and_key(tmp_path, value, dtype):
    config = small_files.CONFIG
    for key in random.Random(0).sample(sorted(small_files.adapter_tensors(config)), 8):

        def spoil(tensor):
            spoilt = tensor.to(dtype)
            spoilt.view(-1)[-1] = value
            return spoilt

        path = small(tmp_path, {key: spoil})
        with pytest.raises(CheckpointError, match=rf"^a\.safetensors: {re.escape(key)} has values"):
            checkpoint.load(path)


def test_a_number_that_is_no_weight_is_found_in_an_official_folder(tmp_path):
    copy_checkpoint(tmp_path)
    key = "7.to_k_lora_image.down.weight"
    change(tmp_path / released.UNET_FILE, lambda sd: sd | {key: sd[key] * float("nan")})
    with pytest.raises(CheckpointError, match=r"unet\.\S+to_k_image\.down has values from nan"):
        checkpoint.load(tmp_path)


def test_values_that_a_type_cannot_hold_are_not_written(tmp_path):
    flat = small_files.adapter_tensors(small_files.CONFIG)
    key = next(iter(flat))
    for value in (float("nan"), 1e5):
        with pytest.raises(CheckpointError, match=f"{re.escape(key)} has values"):
            broken = flat | {key: torch.full_like(flat[key], value)}
            checkpoint.save_single(tmp_path / "a.safetensors", small_files.CONFIG, broken)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- containers


def repacked(path: Path, packing: int, **replaced: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        held = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in held.items():
            archive.writestr(name, replaced.get(name.rpartition("/")[2], content))


def test_a_packed_archive_is_refused_before_anything_in_it_grows(tmp_path):
    copy_checkpoint(tmp_path)
    path = tmp_path / released.TEXT_FILE
    repacked(path, zipfile.ZIP_DEFLATED, **{"0": bytes(50_000_000)})
    assert path.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match="text_encoder_adapter_weights.bin is a compressed"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("file", released.FILES)
def test_every_flipped_byte_of_a_bin_file_is_noticed_or_harmless(tmp_path, file):
    copy_checkpoint(tmp_path)
    whole, path = (tmp_path / file).read_bytes(), tmp_path / file
    rng = random.Random(3)
    for _ in range(6):
        at = rng.randrange(len(whole) // 4, len(whole) // 2)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        try:
            found = open_torch_file(path).read()
        except FileError as error:
            assert "archive is damaged" in str(error)
        else:  # in the filling between two members
            path.write_bytes(whole)
            assert small_files.equal(found, open_torch_file(path).read())


def test_a_description_that_claims_more_than_the_file_has_is_refused(tmp_path):
    copy_checkpoint(tmp_path)
    path = tmp_path / released.TEXT_FILE
    huge = torch.zeros(1).expand(2**31, 4)
    torch.save({"text_encoder.x.down.weight": huge}, path)
    with pytest.raises(CheckpointError, match="description of the weights is damaged"):
        checkpoint.load(tmp_path)


def test_a_file_from_before_the_zip_format_is_told_from_a_cut_one(tmp_path):
    copy_checkpoint(tmp_path)
    path = tmp_path / released.TEXT_FILE
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="before torch 1.6"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("version, refused", [("2.5.1+cu121", True), ("1.13", True), ("2.6.0", 0)])
def test_bin_files_need_a_torch_that_does_not_run_what_is_in_them(
    tmp_path, monkeypatch, version, refused
):
    copy_checkpoint(tmp_path)
    monkeypatch.setattr(torch, "__version__", version)
    if not refused:
        checkpoint.load(tmp_path)
        return
    with pytest.raises(CheckpointError, match=r"needs torch 2\.6 or newer.*CVE-2025-32434"):
        checkpoint.load(tmp_path)


class Runs:
    ran: list = []

    def __reduce__(self):
        return (Runs.ran.append, (1,))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["alone", "value", "key", "in a list"])
def test_nothing_that_a_pickle_asks_for_is_done(tmp_path, where, protocol):
    evil = Runs()
    saved = {"alone": evil, "value": {"a": evil}, "key": {"a": {"b": evil}}, "in a list": [evil]}
    path = tmp_path / "x.bin"
    torch.save(saved[where], path, pickle_protocol=protocol)
    with pytest.raises(FileError, match="x.bin contains more than weights"):
        open_torch_file(path)
    assert not Runs.ran


def test_a_safetensors_header_is_bounded_by_its_file(tmp_path):
    path = tmp_path / "a.safetensors"
    for start in (b"", b"\xff" * 8, (2**40).to_bytes(8, "little"), (9).to_bytes(8, "little")):
        path.write_bytes(start + b"{}      ")
        with pytest.raises(CheckpointError, match="a.safetensors cannot be read as safetensors"):
            checkpoint.load(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is not an ordinary file"):
        checkpoint.load(tmp_path / "a.safetensors")


# ---------------------------------------------------------------- headers


WRONG = {
    "refiner_depth": (2**31, -1, 10**30, "4", 1.5, None, True),
    "tokens_per_reference": (0, -4, 10**9, [4]),
    "refiner_head_width": (0, 7, -16),
    "name": (3, "", "x" * 5000, ["a"]),
    "base": ("\x1b[31mred",),
    "variant": (None,),
    "behaviour": ("evil",),
    "cls_width": (1e9,),
    "text_widths": ([["l", 7], ["g", 8]], "l"),
    "more": (1,),
}


@pytest.mark.parametrize("field, value", [(f, v) for f, values in WRONG.items() for v in values])
def test_a_config_of_another_type_or_out_of_range_is_told(tmp_path, field, value):
    config = json.dumps(json.loads(small_files.CONFIG.to_json()) | {field: value})
    with pytest.raises(CheckpointError, match=r"^a\.safetensors: ") as told:
        checkpoint.load(small(tmp_path, header={"config": config}))
    assert field in str(told.value) or "context width" in str(told.value)
    assert sentence(str(told.value))


@pytest.mark.parametrize("field", sorted(json.loads(small_files.CONFIG.to_json())))
def test_every_field_that_a_config_lacks_is_named(tmp_path, field):
    config = json.loads(small_files.CONFIG.to_json())
    del config[field]
    path = small(tmp_path, header={"config": json.dumps(config)})
    try:
        assert checkpoint.load(path).config
    except CheckpointError as error:  # the default of a field is of another adapter than this one
        assert re.search(f"{field}|does not fit|head width", str(error))


def test_names_from_a_file_reach_a_message_quoted_and_cut(tmp_path):
    path = tmp_path / "a.safetensors"
    flat = small_files.adapter_tensors(small_files.CONFIG)
    odd = "unet.\x1b[31m" + "x" * 5000
    save_file(flat | {odd: torch.zeros(1)}, str(path), metadata=checkpoint_header())
    with pytest.raises(CheckpointError, match="unknown key") as told:
        checkpoint.load(path)
    assert sentence(str(told.value)) and r"\x1b" in str(told.value)


def checkpoint_header() -> dict[str, str]:
    config = small_files.CONFIG
    told = {"format": "mm-diff", "format_version": "1", "config": config.to_json()}
    return told | {"base": config.base.to_json()}
