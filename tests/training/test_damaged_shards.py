"""Damage to encoded records, and shards of strangers: refused in a sentence, or as before."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open

from mmdiff_core.checkpoints.errors import FileError
from mmdiff_core.checkpoints.tensor_file import write_tensor_file
from mmdiff_core.training.data.encoded.recipe import FILE, Encoder, Recipe, read_manifest
from mmdiff_core.training.data.encoded.shards import FACTS, EncodedShards, _sum
from mmdiff_core.training.data.files import FileExamples
from mmdiff_core.training.data.images import BrokenRecord

from support.encoded import Photos
from support.mutations import dumps, judge, limited, mutated_bytes, mutated_json, sentence
from support.photos import same


class Bridge:
    """A base whose latents are the image's own numbers."""

    def latents(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8)


class Task:
    bridge = Bridge()


RECIPE = Recipe(Encoder("a" * 64, "float32", 3, 8), 64, 16, 2.0, 32)


@pytest.fixture
def photos(tmp_path):
    photos = Photos(tmp_path, Task, 3)
    photos.recipe = lambda: RECIPE
    photos.encode()
    return photos


def examples(photos):
    """All that a run reads of the folder."""
    source = FileExamples(photos.records, 0, photos.config, open_record=photos.opened())
    return source.batch(0, 1) + source.batch(4, 1) + source.batch(8, 1)


def unchanged(original):
    def compare(found) -> bool:
        latents = zip(found, original, strict=True)
        return all(
            torch.equal(a.encoded.latent, b.encoded.latent) and _same_rest(a, b) for a, b in latents
        )

    return compare


def _same_rest(a, b) -> bool:
    blank = torch.zeros(1)
    return same(replace(a, pixels=blank), replace(b, pixels=blank))


def with_header(data: bytes, rng: random.Random) -> bytes:
    """A shard with one thing in its header changed."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.5:
        facts = mutated_json(json.loads(header["__metadata__"][FACTS]), rng)
        header["__metadata__"][FACTS] = dumps(facts)
    else:
        header = mutated_json(header, rng)
    text = dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_damage_to_a_shard(photos, tally, mutations):
    path = next(photos.folder.glob("shard-*"))
    data, original = path.read_bytes(), examples(photos)
    for number in range(mutations):
        rng = random.Random(number)
        path.write_bytes(with_header(data, rng) if number % 2 else mutated_bytes(data, rng))
        judge(tally, number, lambda: examples(photos), unchanged(original), (FileError,))


def test_damage_to_a_manifest(photos, tally, mutations):
    path = photos.folder / FILE
    data, original = path.read_bytes(), examples(photos)
    for number in range(mutations):
        rng = random.Random(number)
        if number % 2:
            path.write_text(dumps(mutated_json(json.loads(data), rng)), encoding="utf-8")
        else:
            path.write_bytes(mutated_bytes(data, rng))
        judge(tally, number, lambda: examples(photos), unchanged(original), (FileError,))


def rewritten(photos, change) -> None:
    """The shard as a stranger writes it: with sums that fit. `change(tensors, facts)`."""
    path = next(photos.folder.glob("shard-*"))
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()[FACTS])
    tensors = change(tensors, facts) or tensors
    facts["sums"] = {name: _sum(t.contiguous().numpy().tobytes()) for name, t in tensors.items()}
    write_tensor_file(path, tensors, {FACTS: json.dumps(facts)})


def each(kind: str, make):
    """Every tensor of this kind is replaced."""

    def change(tensors, facts):
        return {n: make(t).contiguous() if n.endswith(kind) else t for n, t in tensors.items()}

    return change


def without(kind: str):
    return lambda tensors, facts: {n: t for n, t in tensors.items() if not n.endswith(kind)}


def renamed(tensors, facts):
    return {name.replace("latent", "../latent"): tensor for name, tensor in tensors.items()}


def of_another_recipe(tensors, facts):
    facts["recipe"] = "b" * 64


STRANGERS = {
    "latents that are not finite": each("latent", lambda t: t * float("nan")),
    "giant latents": each("latent", lambda t: t + 1e30),
    "latents of another type": each("latent", lambda t: t.half()),
    "latents of other channels": each("latent", lambda t: t[:2]),
    "latents of another size": each("latent", lambda t: t[:, :-1]),
    "flat latents": each("latent", lambda t: t.flatten()),
    "cutouts above one": each("cutout", lambda t: t + 1),
    "cutouts of another side": each("cutout", lambda t: t[:, :16, :16]),
    "whole numbers": each("cutout", lambda t: t.to(torch.int64)),
    "no latents": without("latent"),
    "no cutouts": without("cutout"),
    "names of another form": renamed,
    "another recipe": of_another_recipe,
}


@pytest.mark.parametrize("change", STRANGERS.values(), ids=STRANGERS)
def test_what_a_stranger_wrote_is_refused_in_a_sentence(photos, change):
    rewritten(photos, change)
    with limited(), pytest.raises(FileError) as refused:
        examples(photos)
    assert sentence(str(refused.value))


def test_a_strangers_reason_why_a_record_is_broken_is_quoted_and_bounded(photos):
    def broken(tensors, facts):
        keys = {name.partition("/")[0] for name in tensors}
        facts["broken"] = dict.fromkeys(keys, "\x1b[31mred")
        return {"0" * 32 + "/latent": next(iter(tensors.values()))[:3, :2, :2]}

    rewritten(photos, broken)
    opened = photos.opened()
    with pytest.raises(BrokenRecord) as refused:
        opened(photos.records[0])
    assert sentence(str(refused.value))


def test_a_manifest_as_large_as_a_disk_is_not_read(photos):
    with (photos.folder / FILE).open("r+b") as file:
        file.truncate(1 << 40)
    with limited(), pytest.raises(FileError, match="has more than 1048576 bytes"):
        read_manifest(photos.folder)


def test_a_recipe_says_the_same_hash_after_it_was_written_and_read(photos):
    assert read_manifest(photos.folder).recipe.digest == RECIPE.digest
    assert asdict(EncodedShards(photos.folder, RECIPE).recipe) == asdict(RECIPE)
