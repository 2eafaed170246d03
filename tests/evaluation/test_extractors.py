"""Extractors load real model classes from folders, and give the numbers of well-kept code."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mmdiff_core.evaluation import extractors as X
from mmdiff_core.evaluation.scores import cosines, dreambench_plus

from support.faces import THREE
from support.faces import picture as picture_of_faces
from support.tiny_encoders import NAMES, picture, write_encoders

CPU = torch.device("cpu")

# torchmetrics 1.9.0, CLIPScore on `clip-vit-base-patch32` of tiny_encoders: max(100 cos, 0)
TORCHMETRICS = {
    ("a cat in the snow", 0): 20.627502,
    ("a cat in the snow", 1): 13.564703,
    ("a cat in the snow", 2): 13.529881,
    ("a dog", 0): 2.912372,
    ("a dog", 1): 0.0,
    ("a dog", 2): 5.137425,
}
# dreambench_plus/metrics/{clip,dino}_score.py run on the models of tiny_encoders, pictures 1 and 9
DREAMBENCH_PLUS = {"clip-b32": 95.520515, "dino-s8": 85.950386, "dinov2-s": 96.172913}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def loaded(folder):
    names = ("clip-b32", "clip-l14", "dino-s16", "dino-s8", "dinov2-s")
    return {name: X.load_extractor(X.EXTRACTORS[name], [folder], CPU) for name in names}


def pair():
    return picture(1), picture(9, 64, 100)


def percent(a: np.ndarray, b: np.ndarray) -> float:
    return 100 * float(cosines(a[None], b[None])[0, 0])


@pytest.mark.parametrize(("text", "number"), TORCHMETRICS)
def test_clip_t_is_the_clip_score_of_torchmetrics(loaded, text, number):
    clip = loaded["clip-b32"].model
    ours = max(percent(clip.image(picture(number)), clip.text(text)), 0)
    assert ours == pytest.approx(TORCHMETRICS[text, number], abs=1e-3 / 100)


@pytest.mark.parametrize("name", DREAMBENCH_PLUS)
def test_images_score_what_the_code_of_dreambench_plus_gives(loaded, name):
    a, b = (loaded[name].model.image(image)[None] for image in pair())
    assert dreambench_plus(a, b) == pytest.approx(DREAMBENCH_PLUS[name], abs=1e-5)


@torch.inference_mode()
def test_dino_is_transformers_cls_of_the_image_as_dinos_own_evaluation_prepares_it(loaded, folder):
    from transformers import ViTModel

    model = ViTModel.from_pretrained(folder / NAMES["dino"], add_pooling_layer=False).eval()
    image = picture(3, 300, 280)
    small = transforms.functional.resize(image, 256, transforms.InterpolationMode.BICUBIC)
    middle = transforms.functional.center_crop(small, [224, 224])
    pixels = torch.from_numpy(np.array(middle)).movedim(-1, 0).float() / 255
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in X.IMAGENET)
    cls = model(((pixels - mean) / deviation)[None]).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(loaded["dino-s16"].model.image(image), cls, atol=1e-5)


def test_a_text_of_any_length_is_embedded(loaded):
    clip = loaded["clip-b32"].model
    assert np.isfinite(clip.text("a cat " * 200)).all() and clip.text("").shape == (16,)


def test_faces_come_the_largest_first_and_an_image_without_any_has_none(face_models):
    extractor = X.load_extractor(X.arcface("stand_in"), [face_models], CPU)
    image = Image.fromarray(picture_of_faces(*THREE))
    found = extractor.model.faces(image)
    detected = extractor.model.analyser.detect(np.asarray(image))
    areas = {face.embedding.tobytes(): face.area for face in detected}
    ordered = [areas[row.tobytes()] for row in found]
    assert ordered == sorted(ordered, reverse=True) and len(found) == 3
    assert extractor.model.faces(picture(1)).shape == (0, 512)


class Detects:
    """Stands in for MTCNN: as many crops as the image's first byte says."""

    def __init__(self, **options):
        assert options["image_size"] == 160 and options["margin"] == 0 and options["keep_all"]
        assert options["thresholds"] == [0.6, 0.7, 0.7]

    def __call__(self, image):
        count = np.asarray(image)[0, 0, 0]
        return torch.arange(count * 12.0).reshape(count, 3, 2, 2) if count else None


class Embeds(torch.nn.Linear):
    """Stands in for InceptionResnetV1."""

    def __init__(self, pretrained):
        assert pretrained is None, "it would be downloaded"
        super().__init__(12, 512)

    def forward(self, crops):
        return torch.nn.functional.normalize(super().forward(crops.flatten(1)))


def test_facenet_takes_its_weights_from_the_file_and_leaves_the_classes_out(tmp_path, monkeypatch):
    package = SimpleNamespace(MTCNN=Detects, InceptionResnetV1=Embeds)
    monkeypatch.setitem(sys.modules, "facenet_pytorch", package)
    weights = Embeds(None).state_dict()
    file = tmp_path / "facenet" / X.FACENET_FILE
    file.parent.mkdir()
    torch.save({**weights, "logits.weight": torch.zeros(4, 512)}, file)
    facenet = X.load_extractor(X.FACENET, [tmp_path], CPU).model
    found = facenet.faces(Image.new("RGB", (4, 4), (2, 0, 0)))
    flat = torch.arange(24.0).reshape(2, 12) @ weights["weight"].T + weights["bias"]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(flat), atol=1e-5)
    assert facenet.faces(Image.new("RGB", (4, 4))).shape == (0, 512)
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="is no such model"):
        X.load_extractor(X.FACENET, [tmp_path], CPU)


def test_a_package_that_facenet_needs_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    with pytest.raises(ValueError, match="--no-deps facenet-pytorch"):
        X.FaceNet(tmp_path, CPU)


def test_a_model_that_is_not_there_is_told_with_its_page_and_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        X.load_extractor(X.DINOV2_S, [tmp_path], CPU)
    said = str(error.value)
    assert "huggingface.co/facebook/dinov2-small" in said and str(tmp_path / "dinov2-small") in said
    assert "Nothing is downloaded" in said


def test_a_folder_with_another_model_is_told(folder, tmp_path):
    (tmp_path / "dinov2-small").symlink_to(folder / NAMES["clip"])
    with pytest.raises(ValueError, match="dinov2-small is no Dinov2Model: it lacks"):
        X.load_extractor(X.DINOV2_S, [tmp_path], CPU)


def test_a_model_is_found_under_its_short_name_its_page_or_its_own_name(folder, tmp_path):
    for place in ("dino-vits16", "facebook/dino-vits16", "dino-s16"):
        root = tmp_path / place.replace("/", "-")
        (root / place).parent.mkdir(parents=True)
        (root / place).symlink_to(folder / NAMES["dino"])
        assert X.find_folder(X.DINO_S16, [tmp_path, root]) == root / place


def test_the_hash_of_a_model_changes_with_its_weights_and_not_with_its_place(folder, tmp_path):
    import shutil

    copied = shutil.copytree(folder / NAMES["dino"], tmp_path / "copied")
    assert X.hash_of(copied) == X.hash_of(folder / NAMES["dino"])
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert X.hash_of(copied) != X.hash_of(folder / NAMES["dino"])
