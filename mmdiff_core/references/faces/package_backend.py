"""The same models run by the insightface package, where it is installed and asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .detector import SIZES, THRESHOLD, input_sizes
from .packs import TASKS, file_sizes, home, wrong_models
from .runtime import preload_gpu_libraries, reason_of


class PackageDetector:
    """The package's detector, with `Detector`'s methods."""

    def __init__(self, model: Any):
        self.providers: tuple[str, ...] = tuple(model.session.get_providers())
        self.sizes = input_sizes(model.session)
        self._model = model

    def detect(self, image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """As `Detector.detect`."""
        return self._model.detect(_bgr(image), input_size=size)


class PackageRecogniser:
    """The package's recogniser, with `Recogniser`'s method."""

    def __init__(self, model: Any):
        self._model = model

    def embed(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """As `Recogniser.embed`."""
        face = importlib.import_module("insightface.app.common").Face(kps=landmarks)
        return np.asarray(self._model.get(_bgr(image), face), np.float32)


def open_with_package(
    root: Path, name: str, providers: Sequence[str]
) -> tuple[PackageDetector, PackageRecogniser]:
    """Both models of a pack. FaceAnalysis is given the folder itself for a name, so it never looks
    elsewhere, let alone downloads."""
    folder = home(root, name).resolve()
    preload_gpu_libraries(providers)  # InsightFace 2 does it by itself
    analysis = importlib.import_module("insightface.app").FaceAnalysis
    try:
        # One session serves every detector size; InsightFace 2 would otherwise open another for
        # each.
        app = analysis(
            name=str(folder),
            root=str(root),
            allowed_modules=list(TASKS),
            providers=list(providers),
            static_shape_sessions=False,
        )
    except AssertionError:
        raise FileNotFoundError(wrong_models(root, name, TASKS[:1])) from None
    except Exception as error:
        raise RuntimeError(
            f"The model pack {name} could not be loaded: {reason_of(error)}. Files in {folder}: "
            f"{file_sizes(folder)}. A file may be damaged or incomplete: reinstall it."
        ) from error
    if absent := [task for task in TASKS if task not in app.models]:
        raise FileNotFoundError(wrong_models(root, name, absent))
    if not app.models["detection"].use_kps:
        raise RuntimeError(
            f"The detector of {name} finds no landmarks, which alignment needs: "
            f"{file_sizes(folder)}."
        )
    app.prepare(ctx_id=0, det_thresh=THRESHOLD, det_size=(SIZES[0],) * 2)
    return PackageDetector(app.models["detection"]), PackageRecogniser(app.models["recognition"])


def _bgr(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])
