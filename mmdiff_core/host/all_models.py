"""All models of a graph from one place: base model, adapter, image encoder and face analyser."""

from __future__ import annotations

from typing import NamedTuple

import comfy.clip_vision
import comfy.sd
import folder_paths

from ..references import faces
from ..untrusted import quoted, quoted_list
from . import files
from .models import BaseModels, LoadedMMDiff, Readers, load_mmdiff

BASES = "checkpoints"
ENCODERS = "clip_vision"
NO_FACES = "(none)"


class AllModels(NamedTuple):
    """The base model, and the adapter with what reads its reference images."""

    base: BaseModels
    mmdiff: LoadedMMDiff


def find_base(name: str):
    """Path of a base model. FileNotFoundError as in `files.find_listed`."""
    return files.find_listed(BASES, "base model", name)


def find_encoder(name: str):
    """Path of an image encoder. FileNotFoundError as in `files.find_listed`."""
    return files.find_listed(ENCODERS, "CLIP Vision model", name)


def find_faces(name: str) -> None:
    """FileNotFoundError for a known pack of face models that is not there, ValueError for any other
    name that is not listed; NO_FACES needs none."""
    listed = faces.list_models(files.roots(files.FACES))
    if name == NO_FACES or name in listed:
        return
    if name in faces.KNOWN_FILES:
        files.find_face_models(name)
    raise ValueError(f"faces is {quoted(name)}, expected one of: {quoted_list(sorted(listed))}")


def load_all(base: str, checkpoint: str, encoder: str, face_models: str) -> AllModels:
    """Every model by its name in the host's folders; no face analyser for NO_FACES.

    FileNotFoundError for a name that is not there, ValueError for a file of another kind.
    """
    path, weights = files.find_checkpoint(checkpoint), find_encoder(encoder)
    model, clip, vae = _load_base(base)
    clip_vision = comfy.clip_vision.load(str(weights))
    if clip_vision is None:
        raise ValueError(
            f"{weights.name} is not a CLIP Vision model; choose CLIP ViT-L/14 (224 px) as "
            "clip_vision"
        )
    readers = Readers(clip_vision, _load_faces(face_models))
    return AllModels(BaseModels(model, clip, clip_vision, vae), load_mmdiff(path, readers))


def _load_base(name: str) -> tuple:
    """MODEL, CLIP and VAE of a checkpoint, as the host's own Load Checkpoint gives them."""
    loaded = comfy.sd.load_checkpoint_guess_config(
        str(find_base(name)),
        output_vae=True,
        output_clip=True,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
    )
    return loaded[:3]


def _load_faces(name: str) -> faces.FaceAnalyser | None:
    if name == NO_FACES:
        return None
    return faces.load_analyser(faces.find_root(files.roots(files.FACES), name), name, "auto")
