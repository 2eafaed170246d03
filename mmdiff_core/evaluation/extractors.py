"""Embeddings of images, texts and faces: one small class for each model, from local folders.

A folder of a model is what `save_pretrained` of transformers writes, or a copy of the model's page
on Hugging Face; the face models are InsightFace's packs. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ..references.faces import FaceAnalyser, load_analyser
from ..untrusted import listed

HUB = "https://huggingface.co/"
FACES_PAGE = "https://github.com/deepinsight/insightface/tree/master/model_zoo"
FACENET_PAGE = "https://github.com/timesler/facenet-pytorch/releases/tag/v2.2.9"
FACENET_FILE = "20180402-114759-vggface2.pt"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WEIGHTS = ("*.safetensors", "*.bin", "*.onnx", "*.pt", "config.json", "preprocessor_config.json")


class EmbedsImages(Protocol):
    """A model of whole images."""

    def image(self, image: Image.Image) -> np.ndarray:
        """RGB image -> embedding [d], float32, of any length."""


class EmbedsTexts(EmbedsImages, Protocol):
    """A model of whole images and of texts, whose embeddings have the same width."""

    def text(self, text: str) -> np.ndarray:
        """Text -> embedding [d]; what is beyond 77 tokens is cut off."""


class EmbedsFaces(Protocol):
    """A model of faces."""

    def faces(self, image: Image.Image) -> np.ndarray:
        """RGB image -> embeddings of its faces [F d], the largest face first; F may be 0."""


class Clip:
    """CLIP by transformers, prepared by its own processor, as the code of DreamBench++ does it."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.processor = _load(CLIPProcessor, folder)
        self.model = _model(CLIPModel, folder, device)
        self.device = device

    @torch.inference_mode()
    def image(self, image: Image.Image) -> np.ndarray:
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        return _row(self.model.get_image_features(pixel_values=inputs["pixel_values"]))

    @torch.inference_mode()
    def text(self, text: str) -> np.ndarray:
        most = self.model.config.text_config.max_position_embeddings
        told = {"padding": True, "truncation": True, "max_length": most}
        inputs = self.processor(text=[text], return_tensors="pt", **told).to(self.device)
        names = ("input_ids", "attention_mask")
        return _row(self.model.get_text_features(**{name: inputs[name] for name in names}))


class Dino:
    """DINO (a ViT) by transformers: its CLS embedding.

    Prepared as DINO's own evaluation and DreamBench++ do it: shorter side to 256 by bicubic
    interpolation, the middle 224 x 224, ImageNet's mean and deviation.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from torchvision import transforms
        from transformers import ViTModel

        self.model = _model(ViTModel, folder, device, add_pooling_layer=False)
        steps = [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET),
        ]
        self.prepare, self.device = transforms.Compose(steps), device

    @torch.inference_mode()
    def image(self, image: Image.Image) -> np.ndarray:
        pixels = self.prepare(image.convert("RGB"))[None].to(self.device)
        return _row(self.model(pixels).last_hidden_state[:, 0])


class DinoV2:
    """DINOv2 by transformers, prepared by its own processor: `last_hidden_state[:, 0]`."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import BitImageProcessor, Dinov2Model

        self.processor = _load(BitImageProcessor, folder)
        self.model = _model(Dinov2Model, folder, device)
        self.device = device

    @torch.inference_mode()
    def image(self, image: Image.Image) -> np.ndarray:
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        return _row(self.model(inputs["pixel_values"]).last_hidden_state[:, 0])


class ArcFace:
    """Faces by a loaded InsightFace pack."""

    def __init__(self, analyser: FaceAnalyser) -> None:
        self.analyser = analyser

    def faces(self, image: Image.Image) -> np.ndarray:
        found = self.analyser.detect(np.asarray(image.convert("RGB")), "an image")
        ordered = sorted(found, key=lambda face: -face.area)
        if not ordered:
            return np.zeros((0, 512), np.float32)
        return np.stack([face.embedding for face in ordered])


class FaceNet:
    """Faces as FastComposer's evaluation finds and embeds them: MTCNN and InceptionResnetV1 of the
    package facenet-pytorch, its vggface2 weights from a local file."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            from facenet_pytorch import MTCNN, InceptionResnetV1
        except ImportError:
            raise ValueError(
                "FaceNet needs the package facenet-pytorch; install it without what it pins: "
                "python -m pip install --no-deps facenet-pytorch"
            ) from None
        self.detector = MTCNN(
            image_size=160,
            margin=0,
            min_face_size=20,
            thresholds=[0.6, 0.7, 0.7],
            factor=0.709,
            post_process=True,
            keep_all=True,
            device=device,
        )
        self.model, self.device = InceptionResnetV1(pretrained=None), device
        try:
            weights = torch.load(folder / FACENET_FILE, map_location="cpu", weights_only=True)
            own = {k: v for k, v in weights.items() if not k.startswith("logits.")}
            self.model.load_state_dict(own)
        except Exception as error:  # of unpickling too
            reason = str(error).partition("\n")[0][:200]
            raise ValueError(f"{folder / FACENET_FILE} is no such model: {reason}") from None
        self.model.to(device).eval()

    @torch.no_grad()
    def faces(self, image: Image.Image) -> np.ndarray:
        crops = self.detector(image.convert("RGB"))
        if crops is None:
            return np.zeros((0, 512), np.float32)
        return self.model(crops.to(self.device)).float().cpu().numpy()


def _model(kind: Any, folder: Path, device: torch.device, **more: Any) -> Any:
    """A model in float32 on a device. ValueError where its folder lacks some of its weights, which
    transformers would make up."""
    model, told = _load(kind, folder, output_loading_info=True, **more)
    lacking = sorted(told["missing_keys"]) or sorted(map(str, told["mismatched_keys"]))
    if lacking:
        raise ValueError(
            f"the model in {folder} is no {kind.__name__}: it lacks {listed(lacking, 2)}"
        )
    return model.to(device, torch.float32).eval()


def _load(kind: Any, folder: Path, **more: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **more)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"the model in {folder} is no {kind.__name__}: {reason}") from error


def _row(features: Any) -> np.ndarray:
    """The one row of a model's answer; newer transformers wrap it."""
    features = getattr(features, "pooler_output", features)
    return features[0].float().cpu().numpy()


# ---------------------------------------------------------------- which there are


@dataclass(frozen=True)
class Extractor:
    """A model that scores need.

    name     in tables, and the name of its folder
    label    for people
    page     where its files are
    folders  where they belong below a folder of models; the first that exists is used
    kind     "image", "text" (and images) or "face"
    needs    what must be in its folder, from there; a folder holds all that is its own
    """

    name: str
    label: str
    page: str
    folders: tuple[str, ...]
    kind: str
    load: Callable[[Path, torch.device], Any]
    needs: str = "config.json"


def _faces(folder: Path, device: torch.device, name: str = "buffalo_l") -> ArcFace:
    return ArcFace(load_analyser(folder, name, "cuda" if device.type == "cuda" else "cpu"))


def _hub(name: str, label: str, page: str, kind: str, load: Any) -> Extractor:
    last = page.rpartition("/")[2]
    return Extractor(name, label, HUB + page, (last, page, name), kind, load)


def arcface(pack: str = "buffalo_l") -> Extractor:
    """ArcFace of an InsightFace pack by its name."""
    load = partial(_faces, name=pack)
    places = ("insightface", ".")
    label = f"ArcFace ({pack})"
    return Extractor("arcface", label, FACES_PAGE, places, "face", load, f"models/{pack}")


CLIP_B32 = _hub("clip-b32", "CLIP ViT-B/32", "openai/clip-vit-base-patch32", "text", Clip)
CLIP_L14 = _hub("clip-l14", "CLIP ViT-L/14", "openai/clip-vit-large-patch14", "text", Clip)
DINO_S16 = _hub("dino-s16", "DINO ViT-S/16", "facebook/dino-vits16", "image", Dino)
DINO_S8 = _hub("dino-s8", "DINO ViT-S/8", "facebook/dino-vits8", "image", Dino)
DINOV2_S = _hub("dinov2-s", "DINOv2 ViT-S/14", "facebook/dinov2-small", "image", DinoV2)
ARCFACE = arcface()
FACENET = Extractor(
    "facenet", "FaceNet (vggface2)", FACENET_PAGE, ("facenet",), "face", FaceNet, FACENET_FILE
)
ALL = (CLIP_B32, CLIP_L14, DINO_S16, DINO_S8, DINOV2_S, ARCFACE, FACENET)
EXTRACTORS = {each.name: each for each in ALL}


def find_folder(extractor: Extractor, roots: Sequence[Path]) -> Path:
    """The folder with an extractor's files. FileNotFoundError names its page and its place."""
    for root in roots:
        for name in extractor.folders:
            if (root / name / extractor.needs).exists():
                return root / name
    places = " or ".join(str(root / extractor.folders[0]) for root in roots)
    raise FileNotFoundError(
        f"{extractor.label} is not there: expected {extractor.needs} in {places}. Nothing is "
        f"downloaded: put the files of {extractor.page} into that folder."
    )


@dataclass(frozen=True)
class LoadedExtractor:
    """An extractor with its model, and the hash of the model's files."""

    extractor: Extractor
    model: Any
    digest: str

    @property
    def name(self) -> str:
        return self.extractor.name


def load_extractor(
    extractor: Extractor, roots: Sequence[Path], device: torch.device
) -> LoadedExtractor:
    """Find and load one. FileNotFoundError as in `find_folder`; ValueError for other files."""
    folder = find_folder(extractor, roots)
    own = folder / extractor.needs
    digest = hash_of(own if own.is_dir() else folder)
    return LoadedExtractor(extractor, extractor.load(folder, device), digest)


def hash_of(folder: Path) -> str:
    """SHA-256 over the weights and settings of a model's folder, or of one file: 64 digits."""
    names = [folder] if folder.is_file() else []
    for pattern in () if names else WEIGHTS:
        names += folder.glob(pattern)
    digest = hashlib.sha256()
    for path in sorted(names):
        digest.update(path.name.encode() + b"\0" + file_hash(path).encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes: 64 digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
