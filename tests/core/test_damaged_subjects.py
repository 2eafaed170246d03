"""Subject files whose numbers, sizes or texts are not those of a subject."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from mmdiff_core.checkpoints.subject_file import SubjectFileError, load_subject, save_subject
from mmdiff_core.config import MMDiffConfig

from support import small_files
from support.mutations import sentence
from support.subjects import ADAPTER, subject

HEADER = {
    "format": "mmdiff-subject",
    "format_version": "1",
    "name": "ann",
    "adapter": ADAPTER,
    "encoder": "feed",
    "references": "2",
    "weight": "1.0",
}


def write(tmp_path, tensors=None, header=None):
    """A subject as an older version wrote it: without a checksum."""
    ann = subject()
    told = {"tokens": ann.tokens, "words.l": ann.words["l"], "words.g": ann.words["g"]}
    told |= {"identity": ann.identity, "pictures_seen": ann.thumbnails} | (tensors or {})
    path = tmp_path / "ann.safetensors"
    apart = {key: tensor.contiguous() for key, tensor in told.items()}
    save_file(apart, str(path), metadata=HEADER | (header or {}))
    return path


def test_a_subject_of_an_older_version_loads(tmp_path):
    found = load_subject(write(tmp_path), ADAPTER)
    assert torch.equal(found.tokens, subject().tokens) and found.references == 2


@pytest.mark.parametrize(
    "key, tensor, told",
    [
        ("tokens", torch.zeros(8), "tokens is float32"),
        ("tokens", torch.zeros(2, 4, 16), "tokens is float32"),
        ("tokens", torch.zeros(()), "tokens is float32"),
        ("tokens", torch.zeros(8, 0), "tokens is float32"),
        ("tokens", torch.zeros(1000, 16), "at most 128 tokens"),
        ("tokens", torch.zeros(8, 16, dtype=torch.int64), "tokens is int64"),
        ("words.l", torch.zeros(2, 8), "words.l is float32"),
        ("words.l", torch.zeros(0), "words.l is float32"),
        ("words.\x1b[31m", torch.zeros(8), r"unknown tensor 'words.\\x1b"),
        ("more", torch.zeros(8), "unknown tensor 'more'"),
        ("identity", torch.zeros(8, 8), "identity is float32"),
        ("identity", torch.full((8,), 3.0), "no unit vector"),
        ("pictures_seen", torch.zeros(1, 8000, 2, 3, dtype=torch.uint8), "pictures_seen is uint8"),
        ("pictures_seen", torch.zeros(1, 64, 64, 4, dtype=torch.uint8), "pictures_seen is uint8"),
        ("pictures_seen", torch.zeros(1, 64, 64, 3), "pictures_seen is float32"),
        ("tokens", torch.full((8, 16), torch.nan), "non-finite values: tokens"),
        ("tokens", torch.full((8, 16), torch.inf), "non-finite values: tokens"),
        ("tokens", torch.full((8, 16), 1e30), "non-finite values: tokens"),
        ("words.g", torch.full((12,), torch.nan), "non-finite values: words.g"),
        ("identity", torch.full((8,), torch.nan), "non-finite values: identity"),
    ],
)
def test_a_tensor_that_no_subject_has_is_named(tmp_path, key, tensor, told):
    with pytest.raises(SubjectFileError, match=told) as error:
        load_subject(write(tmp_path, {key: tensor}, {}), ADAPTER)
    assert "ann.safetensors" in str(error.value) and sentence(str(error.value))


WRONG = {
    "references": ("-1", "0", "many", "1e3", "99999999", "1" * 5000),
    "weight": ("nan", "inf", "-1", "heavy", "1e9"),
    "name": ("", "x" * 5000, "\x1b[31mred", "a\nb"),
    "adapter": ("\x1b[31m",),
    "encoder": ("x" * 500,),
    "format_version": ("\x1b[2J",),
}


@pytest.mark.parametrize("field, value", [(f, v) for f, values in WRONG.items() for v in values])
def test_a_text_in_the_header_that_no_subject_has_is_told(tmp_path, field, value):
    with pytest.raises(SubjectFileError) as error:
        load_subject(write(tmp_path, header={field: value}), ADAPTER)
    assert "ann.safetensors" in str(error.value) and sentence(str(error.value))


@pytest.mark.parametrize("field", ["name", "adapter", "references", "format_version"])
def test_a_text_that_is_missing_is_named(tmp_path, field):
    path = write(tmp_path, header={})
    save_file(
        {"tokens": torch.zeros(4, 16)},
        str(path),
        metadata={key: value for key, value in HEADER.items() if key != field},
    )
    with pytest.raises(SubjectFileError, match=field.removesuffix("_version")):
        load_subject(path, ADAPTER)


CONFIG = MMDiffConfig("mite", small_files.PORTRAIT, small_files.BASE, "released", 4, 1, 16)


def test_the_widths_are_those_of_the_connected_adapter(tmp_path):
    widths = {"words.l": torch.zeros(8), "words.g": torch.zeros(8)}
    whole = widths | {"identity": torch.zeros(512)}
    assert load_subject(write(tmp_path, whole, {}), ADAPTER, "x", CONFIG).tokens.shape == (8, 16)
    for key, tensor, told in (
        ("tokens", torch.zeros(8, 24), "16 wide"),
        ("tokens", torch.zeros(7, 16), "4 for each of 2 references"),
        ("tokens", torch.zeros(12, 16), "4 for each of 2 references"),
        ("words.l", torch.zeros(9), "words.l"),
        ("words.h", torch.zeros(8), "words.h"),
        ("identity", torch.zeros(8), "identity is 8 wide"),
    ):
        with pytest.raises(SubjectFileError, match=told):
            load_subject(write(tmp_path, whole | {key: tensor}, {}), ADAPTER, "x", CONFIG)


def test_a_byte_that_changed_after_it_was_saved_is_noticed(tmp_path):
    path = tmp_path / "ann.safetensors"
    save_subject(path, subject())
    data = path.read_bytes()
    for at in range(0, len(data), 997):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(SubjectFileError):
            load_subject(path, ADAPTER)


@pytest.mark.parametrize("name", ["", "x" * 1001, "a\x1b[31m"])
def test_a_name_that_could_not_be_read_again_is_not_saved(tmp_path, name):
    with pytest.raises(SubjectFileError):
        save_subject(tmp_path / "ann.safetensors", replace(subject(), name=name))
    assert not list(tmp_path.iterdir())
