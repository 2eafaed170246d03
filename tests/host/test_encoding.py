"""Encoding subjects: the general variant, several references, remembered encodings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdiff_core.checkpoints import checkpoint
from mmdiff_core.config import GENERAL
from mmdiff_core.host.encode import encode_subject
from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.method.adapter import SubjectModules
from mmdiff_core.method.subjects import add_subject

from support import make
from support.cases import CASE, CHECKPOINT, cls_embeddings
from support.recorded import load_world
from tiny_model import build


@pytest.fixture(scope="module")
def world():
    return load_world(CASE)


def test_a_general_adapter_needs_no_face(world):
    config = replace(make.narrow_config("sdxl"), variant=GENERAL)
    mmdiff = make.random_mmdiff(config)
    encoded = encode_subject(mmdiff, world["vision"], torch.rand(2, 30, 40, 3), None, "fox")
    subject, seen = encoded.subject, encoded.seen
    assert (
        subject.tokens.shape == (8, make.CONTEXT)
        and subject.references == 2
        and seen.shape == (2, 224, 224, 3)
    )


def test_a_portrait_adapter_without_faces_says_what_to_install(world):
    with pytest.raises(ValueError, match="Load Face Analysis.*insightface.*models/insightface"):
        encode_subject(world["mmdiff"], world["vision"], torch.rand(1, 30, 40, 3), None, "ann")


def test_each_reference_adds_its_own_tokens_and_the_first_speaks_in_the_text(world):
    (slot,) = CASE.slots()
    image = CASE.images(slot)
    one = encode_subject(world["mmdiff"], world["vision"], image, CASE.faces(slot), "a").subject
    faces = CASE.faces(slot)
    faces.answers = faces.answers * 3
    three = encode_subject(
        world["mmdiff"], world["vision"], torch.cat([image, image.flip(1), image * 0.5]), faces, "a"
    ).subject
    assert three.tokens.shape[0] == 12 and faces.calls == 3
    assert torch.allclose(three.tokens[:4], one.tokens, atol=1e-5)
    assert all(torch.allclose(three.words[e], one.words[e], atol=1e-5) for e in one.words)


@pytest.fixture
def counted(world, monkeypatch):
    """How often the image encoder has run."""
    from mmdiff_core.host import vision

    runs, run = [], vision._run
    monkeypatch.setattr(vision, "_run", lambda *args: runs.append(1) or run(*args))
    return runs


def test_another_name_encodes_no_picture_and_finds_no_face_again(world, counted):
    (slot,) = CASE.slots()
    mmdiff, images, faces = load_mmdiff(CHECKPOINT), CASE.images(slot), CASE.faces(slot)
    first = encode_subject(mmdiff, world["vision"], images, faces, "ann")
    runs = len(counted)
    again = encode_subject(mmdiff, world["vision"], images.clone(), faces, "ben")
    assert runs > 0 and len(counted) == runs and faces.calls == 1
    assert (again.subject.name, first.subject.name) == ("ben", "ann")
    assert torch.equal(again.subject.tokens, first.subject.tokens) and torch.equal(
        again.seen, first.seen
    )


@pytest.mark.parametrize(
    "change", ["picture", "region", "which face", "clip_only", "faces", "image encoder", "adapter"]
)
def test_whatever_changes_the_encoding_encodes_again(world, counted, change):
    (slot,) = CASE.slots()
    mmdiff, vision, images, faces = (
        load_mmdiff(CHECKPOINT),
        world["vision"],
        CASE.images(slot),
        CASE.faces(slot),
    )
    options: dict = {}
    encode_subject(mmdiff, vision, images, faces, "ann")
    runs = len(counted)
    if change == "picture":
        images = images.flip(1)
    elif change == "region":
        faces.portrait = lambda image, which, label, region: CASE.faces(slot).portrait(
            image, which, label
        )
        options["region"] = torch.ones(images.shape[1:3])
    elif change == "which face":
        options["which_face"] = 1
    elif change == "clip_only":
        options["clip_only"] = True
    elif change == "faces":
        faces = CASE.faces(slot)
    elif change == "image encoder":
        vision = build.clip_vision()
    else:
        mmdiff = load_mmdiff(CHECKPOINT)
    encode_subject(mmdiff, vision, images, faces, "ann", **options)
    assert len(counted) > runs


def test_only_the_last_encodings_are_remembered_and_no_object_is_kept_alive():
    from weakref import ref

    from mmdiff_core.host.models import Encodings

    class Maker:
        pass

    maker, kept, made = Maker(), Encodings(keep=2), []

    def remember(maker, number):
        return kept.remember(
            (maker, None), (torch.tensor([number]),), (), lambda: made.append(number) or number
        )

    assert [remember(maker, i) for i in (0, 1, 2, 1, 2, 0)] == [0, 1, 2, 1, 2, 0]
    assert made == [0, 1, 2, 0]
    remember(Maker(), 2)
    assert made == [0, 1, 2, 0, 2]
    gone = ref(maker)
    del maker
    assert gone() is None


def test_an_image_encoder_of_another_size_is_refused(world):
    narrow = make.narrow_config("sdxl")
    other = replace(narrow.base, image=replace(narrow.base.image, width=32, cls_width=48))
    mmdiff = make.random_mmdiff(replace(narrow, base=other))
    with pytest.raises(ValueError, match="width 64 and projection 96, narrow-sdxl needs 32 and 48"):
        encode_subject(mmdiff, world["vision"], torch.rand(1, 30, 40, 3), None, "a")


def test_the_fine_tuned_image_encoder_shares_its_weights_and_leaves_them_as_they_were(world):
    import comfy.model_management

    from mmdiff_core.host.vision import fine_tuned

    patcher = fine_tuned(world["vision"], world["mmdiff"].adapter)
    assert patcher.model is world["vision"].model
    comfy.model_management.unload_all_models()
    before = {k: v.clone() for k, v in world["vision"].model.state_dict().items()}
    (slot,) = CASE.slots()
    encode_subject(world["mmdiff"], world["vision"], CASE.images(slot), CASE.faces(slot), "a")
    comfy.model_management.unload_all_models()
    assert all(torch.equal(v, before[k]) for k, v in world["vision"].model.state_dict().items())


def test_a_whole_fine_tuned_tower_is_applied_to_the_last_weight(world):
    """Also the class embedding and positions, which are bare parameters of the host's model.

    The change is of the weights' own size and in no common direction: a constant added to the class
    embedding vanishes in the layer norm behind it, and added to all weights it makes activations so
    large that float32 itself is off by more than the bound on some processors.
    """
    before = {k: v.clone() for k, v in world["vision"].model.state_dict().items()}
    whole = {k: v + 0.1 * v.flip(0) for k, v in before.items()}
    adapter = replace(world["mmdiff"].adapter, vision=whole)
    found = cls_embeddings(world["vision"], adapter, CASE.images(CASE.slots()[0]))
    other = build.clip_vision()
    other.model.load_state_dict(whole)
    expected = cls_embeddings(other, replace(adapter, vision={}), CASE.images(CASE.slots()[0]))
    assert torch.allclose(found, expected, atol=1e-5)
    images = CASE.images(CASE.slots()[0])
    plain = cls_embeddings(world["vision"], replace(adapter, vision={}), images)
    assert not torch.allclose(found, plain, atol=1e-2)
    left = world["vision"].model.state_dict()
    assert all(torch.equal(left[key], weight) for key, weight in before.items())


def test_training_layers_and_casting_layers_give_the_same_subject():
    config = make.narrow_config("sdxl")
    flat = make.random_tensors(config)
    import comfy.ops

    plain, casting = (
        checkpoint.build(config, flat, "x", ops) for ops in (torch.nn, comfy.ops.manual_cast)
    )
    assert isinstance(plain.modules, SubjectModules) and set(plain.modules.state_dict()) == set(
        casting.modules.state_dict()
    )
    query, patches = torch.randn(2, 512), torch.randn(2, 50, 64)
    assert torch.equal(
        plain.modules.subject_tokens(query, patches), casting.modules.subject_tokens(query, patches)
    )


def test_two_subjects_cannot_share_a_name():
    mmdiff = make.random_mmdiff(make.narrow_config("sd15"))
    chain = add_subject((), make.random_subject(mmdiff, "ann"))
    with pytest.raises(ValueError, match="already a subject named 'ann'"):
        add_subject(chain, make.random_subject(mmdiff, "ann"))
