"""Loading a model pack: which backend and which providers, and what is said of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...untrusted import quoted
from . import runtime
from .analyser import DetectsFaces, EmbedsFaces, FaceAnalyser
from .detector import Detector
from .package_backend import open_with_package
from .packs import (
    MANIFEST,
    TASKS,
    check_files,
    file_sizes,
    home,
    model_files,
    where_to_put,
    wrong_models,
)
from .recogniser import Recogniser
from .runtime import CUDA, reason_of

log = logging.getLogger(__package__)

BUILT_IN, PACKAGE = "built-in", "insightface"
BACKENDS = ("auto", BUILT_IN, PACKAGE)


def load_analyser(
    root: Path, name: str = "buffalo_l", device: str = "auto", backend: str = "auto"
) -> FaceAnalyser:
    """Loads the detector and the recogniser of <root>/models/<name>.

    device   auto, cuda or cpu
    backend  built-in reads the files itself, insightface leaves them to that package; auto is
             built-in, but for packs that only the package can read

    Raises ImportError for a missing package, FileNotFoundError for missing files, ValueError for
    unknown names, RuntimeError for files that cannot be read and for CUDA that cannot be used.
    """
    folder = home(root, name)
    used = choose_backend(backend, folder)
    packages = ("onnxruntime",) if used == BUILT_IN else ("insightface", "onnxruntime")
    runtime.require_packages(*packages, then=where_to_put())
    root = Path(root)
    check_files(root, name)
    wanted = runtime.choose_providers(device, runtime.available_providers(), runtime.runtimes())
    opened = (open_built_in if used == BUILT_IN else open_with_package)(root, name, wanted)
    analyser = FaceAnalyser(*opened, name, folder, used)
    _report_providers(device, wanted, analyser)
    return analyser


def choose_backend(backend: str, folder: Path) -> str:
    """built-in or insightface. ValueError for another name, or for files that need the other."""
    if backend not in BACKENDS:
        raise ValueError(
            f"Unknown backend {quoted(backend)} for faces; choose one of {', '.join(BACKENDS)}."
        )
    manifest = (folder / MANIFEST).is_file()
    if manifest and backend == BUILT_IN:
        raise ValueError(
            f"The face models in {folder} have a {MANIFEST}: only the insightface package can "
            f"read them. Choose {PACKAGE} or auto as backend, or a pack such as buffalo_l."
        )
    if backend == "auto":
        return PACKAGE if manifest else BUILT_IN
    return backend


def open_built_in(
    root: Path, name: str, providers: Sequence[str]
) -> tuple[DetectsFaces, EmbedsFaces]:
    """Both models of a pack, read by this package."""
    found: dict[str, Any] = {}
    try:
        for path in model_files(root, name):
            session = runtime.open_session(path, providers)
            task = task_of(session)
            if task == TASKS[0] and task not in found:
                found[task] = Detector(session, path.name)
            elif task == TASKS[1] and task not in found:
                found[task] = Recogniser(session, path)
            if len(found) == len(TASKS):
                break
    except Exception as error:
        folder = home(root, name).resolve()
        raise RuntimeError(
            f"The model pack {name} could not be loaded: {reason_of(error)}. Files in {folder}: "
            f"{file_sizes(folder)}. A file may be damaged or incomplete: reinstall it."
        ) from error
    if absent := [task for task in TASKS if task not in found]:
        raise FileNotFoundError(wrong_models(root, name, absent))
    return found[TASKS[0]], found[TASKS[1]]


def task_of(session: Any) -> str | None:
    """What a file of a pack is for, told as InsightFace does: by its outputs and its input size."""
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(shape) != 4:
        return None
    if len(session.get_outputs()) >= 5:
        return TASKS[0]
    height, width = shape[2:]
    square = height == width and isinstance(height, int)
    landmarks = height == 192
    swapper = len(inputs) == 2 and height == 128
    if square and height >= 112 and height % 16 == 0 and not landmarks and not swapper:
        return TASKS[1]
    return None


def _report_providers(device: str, wanted: Sequence[str], analyser: FaceAnalyser) -> None:
    """One warning when the GPU could have been used and is not; an error when it was asked for."""
    used = ", ".join(analyser.providers)
    advice = runtime.provider_advice(
        runtime.runtimes(), runtime.available_providers(), cuda_wanted=device == "cuda"
    )
    if CUDA in wanted and CUDA not in analyser.providers:
        said = (
            f"Faces run on {used}: onnxruntime offers CUDA but could not start it. Its own message "
            "above says why; usually there is no NVIDIA GPU, or CUDA or cuDNN is not the version "
            "that onnxruntime-gpu needs."
        )
        if device == "cuda":
            raise RuntimeError(f"CUDA was chosen for faces. {said} Or choose auto or cpu.")
        log.warning("%s Choose device cpu to load without trying.", said)
    elif advice and device != "cpu":
        log.warning("Faces run on %s. %s", used, advice)
    log.info("Faces: %s from %s on %s, %s", analyser.name, analyser.folder, used, analyser.backend)
