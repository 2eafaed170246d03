"""Training on images that were encoded before the run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmdiff_core.checkpoints.errors import FileError
from mmdiff_core.training.data.augment import Augmentation
from mmdiff_core.training.data.config import Dropout
from mmdiff_core.training.data.encoded.recipe import read_manifest, write_manifest
from mmdiff_core.training.data.encoded.shards import EncodedShards
from mmdiff_core.training.data.files import FileExamples
from mmdiff_core.training.data.masks import encode_rle
from mmdiff_core.training.example import ReferenceFace

from support.encoded import Photos, small_vae
from support.photos import picture, write_jsonl
from support.small_task import RUN, shake


@pytest.fixture(scope="module")
def task():
    from mmdiff_core.host.frozen_base.base import load_base
    from mmdiff_core.host.frozen_base.build import build_task

    task = build_task(RUN, base=load_base("small-world")._replace(vae=small_vae()))
    shake(task)
    yield task
    task.bridge.close()


@pytest.fixture
def photos(tmp_path, task):
    return Photos(tmp_path, task)


def both(photos, **options):
    """The same examples from the files, and from the shards."""
    config = replace(photos.config, dropout=Dropout(0.1, 0.1), **options)
    plain = FileExamples(photos.records, 5, config)
    return plain, FileExamples(photos.records, 5, config, open_record=photos.opened())


def same_but_encoded(one, two) -> bool:
    """Whether two examples are equal to the last bit, but for the image."""
    if (one.caption, one.index, one.size) != (two.caption, two.index, two.size):
        return False
    pairs = list(zip(one.subjects, two.subjects, strict=True))
    return all(
        a.span == b.span and torch.equal(a.mask, b.mask) and torch.equal(a.references, b.references)
        for a, b in pairs
    )


def test_examples_are_the_same_and_the_latents_are_those_of_the_step(photos, task):
    assert photos.encode() == 9
    plain, encoded = both(photos)
    for index in range(24):
        one, two = plain.example(index), encoded.example(index)
        assert same_but_encoded(one, two) and two.pixels is None and one.encoded is None
        assert torch.equal(task.bridge.latents(one.pixels[None])[0], two.encoded.latent)


def test_the_loss_is_that_of_encoding_in_the_step_and_the_vae_is_not_asked(
    photos, task, monkeypatch
):
    photos.encode()
    plain, encoded = both(photos)
    expected = [task(plain.batch(start, 4)) for start in (0, 4, 8)]

    def asked(*_):
        raise AssertionError("the VAE was asked")

    monkeypatch.setattr(task.bridge.vae.first_stage_model, "encode", asked)
    for start, terms in zip((0, 4, 8), expected, strict=True):
        found = task(encoded.batch(start, 4))
        assert found.keys() == terms.keys()
        for name, value in terms.items():
            assert found[name].item() == pytest.approx(value.item(), abs=1e-6)


def test_latents_do_not_depend_on_the_precision_of_the_run(photos, task):
    pixels = FileExamples(photos.records, 0, photos.config).example(0).pixels[None]
    expected = task.bridge.latents(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.bridge.latents(pixels), expected)


def green_has_none(crop):
    if crop[1].max() > crop[0].max():
        return None
    return ReferenceFace(torch.full((512,), float(crop.mean())), crop[:, :8, :8].clone())


def test_faces_are_kept_and_a_subject_without_one_is_left_out_as_before(photos):
    recipe = replace(photos.recipe(), faces="0" * 64, background=(0.0, 0.0, 0.0))
    photos.encode(find_face=green_has_none, recipe=recipe)
    photos.recipe = lambda: recipe
    encoded = FileExamples(photos.records, 5, photos.config, open_record=photos.opened())
    plain = FileExamples(photos.records, 5, photos.config, green_has_none)
    for index in range(9):
        one, two = plain.example(index), encoded.example(index)
        assert same_but_encoded(one, two) and len(two.subjects) == 1
        faces = one.subjects[0].faces, two.subjects[0].faces
        assert torch.equal(faces[0].embeddings, faces[1].embeddings)
        assert torch.equal(faces[0].crops, faces[1].crops)


def test_references_of_other_images_come_from_their_shards(photos):
    def name(_number, facts):
        facts["segments"][0]["identity"] = "rex"

    write_jsonl(photos.path.parent, 9, name)
    photos.encode()
    plain, encoded = both(photos, references=(3, 3), augmentation=Augmentation.identity())
    shown = set()
    for index in range(12):
        one, two = plain.example(index), encoded.example(index)
        assert same_but_encoded(one, two)
        for subject in two.subjects:
            shown.add(len(subject.references.flatten(1).unique(dim=0)))
    assert 3 in shown  # three different images of one dog


def test_an_image_that_cannot_be_decoded_is_left_out_as_before(photos, caplog):
    data = (photos.path.parent / "7.png").read_bytes()
    (photos.path.parent / "7.png").write_bytes(data[: len(data) // 2])
    assert photos.encode() == 8 and photos.encode() == 0
    plain, encoded = both(photos)
    assert all(same_but_encoded(plain.example(i), encoded.example(i)) for i in range(18))
    assert plain.broken.keys() == encoded.broken.keys() == {7}
    assert "cannot be read" in encoded.broken[7]


def test_a_stopped_encoding_goes_on_and_ends_the_same(photos, tmp_path, task):
    calls = []

    def stops(pixels):
        calls.append(pixels)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return task.bridge.latents(pixels)

    with pytest.raises(KeyboardInterrupt):
        photos.encode(stops)
    with pytest.raises(FileError, match="does not hold all 9 records.*Go on with it: python -m"):
        photos.opened()
    (photos.folder / "shard-x.safetensors.part").write_bytes(b"half")
    assert photos.encode() == 4 and photos.encode() == 0
    assert not list(photos.folder.glob("*.part"))
    plain, encoded = both(photos)
    assert all(same_but_encoded(plain.example(i), encoded.example(i)) for i in range(9))


def test_more_records_are_added_and_only_they_are_encoded(photos):
    photos.encode()
    write_jsonl(photos.path.parent, 12)
    with pytest.raises(FileError, match="does not hold all 12 records"):
        photos.opened()
    assert photos.encode() == 3
    both(photos)[1].example(11)


CHANGES = {
    "side": 48,
    "multiple": 8,
    "aspect": 1.5,
    "reference_side": 24,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_folder_of_another_image_size_is_refused_by_run_and_command(photos, field):
    photos.encode()
    before = getattr(photos.config, field)
    told = f"{field} was {before} and is now {CHANGES[field]}.*data.encoded"
    with pytest.raises(FileError, match=told):
        photos.opened(**{field: CHANGES[field]})
    with pytest.raises(FileError, match=told):
        photos.encode(recipe=photos.recipe(**{field: CHANGES[field]}))
    photos.opened()


@pytest.mark.parametrize("field, value", [("crop", "the middle"), ("flipped", True)])
def test_a_folder_of_another_crop_or_of_flipped_images_is_refused(photos, field, value):
    photos.encode()
    manifest = read_manifest(photos.folder)
    write_manifest(
        photos.folder, replace(manifest, recipe=replace(manifest.recipe, **{field: value}))
    )
    with pytest.raises(FileError, match=f"{field} was {value!r} and is now"):
        photos.opened()


def test_another_vae_type_or_scale_of_latents_is_refused(photos, task, monkeypatch):
    from mmdiff_core.host.frozen_base.latents import LatentEncoder

    photos.encode()
    bridge = task.bridge
    weight = next(bridge.vae.first_stage_model.parameters())
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1e-3
    monkeypatch.setattr(bridge, "encoder", LatentEncoder(bridge.base, bridge.vae))
    with pytest.raises(FileError, match=r"vae was [0-9a-f]{12}\.\.\. and is now [0-9a-f]{12}"):
        photos.opened()
    with torch.no_grad():
        weight[0, 0, 0, 0] -= 1e-3
    monkeypatch.setattr(bridge.base, "process_latent_in", lambda latent: 2 * latent)
    monkeypatch.setattr(bridge, "encoder", LatentEncoder(bridge.base, bridge.vae))
    with pytest.raises(FileError, match="vae was"):
        photos.opened()


def test_an_image_or_mask_that_changed_is_refused_when_it_is_asked_for(photos):
    photos.encode()
    _, encoded = both(photos)
    picture(50, (96, 64))[0].save(photos.path.parent / "0.png")

    def every():
        return [encoded.open_record(record) for record in photos.records]

    with pytest.raises(FileError, match="data.jsonl:1 is not in .*changed since they were encoded"):
        every()
    picture(0, (96, 64))[0].save(photos.path.parent / "0.png")
    every()

    def move(number, facts):
        if number == 2:
            mask = picture(number, (64, 64))[1][0]
            mask[0, 0] = True
            facts["segments"][0]["mask"] = encode_rle(mask)

    write_jsonl(photos.path.parent, 9, move)
    with pytest.raises(FileError, match="data.jsonl:3 is not in"):
        every()


def test_shards_hold_no_more_records_than_asked(photos):
    photos.encode(shard=2)
    paths = sorted(photos.folder.glob("shard-*.safetensors"))
    assert len(paths) == 5
    assert len(EncodedShards(photos.folder, photos.recipe())._places) == 9


def test_a_folder_that_is_not_there_says_what_makes_it(photos):
    with pytest.raises(FileError, match="no encoded records; make them first: python -m mmdiff"):
        photos.opened()


def test_a_contact_sheet_shows_encoded_images_as_the_vae_decodes_them(photos, task, tmp_path):
    from PIL import Image

    from mmdiff_core.host.frozen_base.contact import training_grid
    from mmdiff_core.host.sampling import decode

    photos.encode()
    batch = both(photos)[1].batch(0, 2)
    training_grid(task, batch, tmp_path / "sheet.png", steps=1)
    shown = decode(task, batch[0].encoded.latent[None])[0].clamp(0, 1) * 255
    assert shown.std() > 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        drawn = torch.from_numpy(np.array(sheet)).float()[4:132, 4:132]
    expected = torch.nn.functional.interpolate(shown.movedim(-1, 0)[None], size=(128, 128))
    assert (drawn - expected[0].movedim(0, -1)).abs().max() <= 1


def test_without_a_base_to_compare_with_encoded_images_are_not_read(photos):
    from mmdiff_core.host.frozen_base.run import load_data

    photos.encode()
    data = {"kind": "files", "records": [str(photos.path)], "encoded": str(photos.folder)}
    with pytest.raises(ValueError, match="no base to compare its VAE with"):
        load_data(data, 0)
