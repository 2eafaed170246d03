"""Faces in images: detection, embedding and aligned crops with InsightFace's models, from files
that are already on the disk. Nothing is downloaded.

The files are run by onnxruntime, whichever package of it is installed (`runtime`), and read here
(`detector`, `recogniser`, `alignment`) with the numbers of the insightface package, which is only
needed where it is asked for (`package_backend`). Both packages are imported when a function needs
them, not before.
"""

from .alignment import CROP_SIZE, align
from .analyser import BORDERS, FaceAnalyser
from .detector import SIZES as DETECTOR_SIZES
from .detector import THRESHOLD
from .drawing import draw
from .face import Box, Face
from .loading import BACKENDS, load_analyser
from .packs import KNOWN_FILES, LICENCE, check_files, find_root, is_there, list_models
from .runtime import (
    CPU,
    CUDA,
    DEVICES,
    available_providers,
    choose_providers,
    installed,
    provider_advice,
    require_packages,
    runtimes,
)

__all__ = [
    "BACKENDS",
    "BORDERS",
    "CPU",
    "CROP_SIZE",
    "CUDA",
    "DETECTOR_SIZES",
    "DEVICES",
    "KNOWN_FILES",
    "LICENCE",
    "THRESHOLD",
    "Box",
    "Face",
    "FaceAnalyser",
    "align",
    "available_providers",
    "check_files",
    "choose_providers",
    "draw",
    "find_root",
    "installed",
    "is_there",
    "list_models",
    "load_analyser",
    "provider_advice",
    "require_packages",
    "runtimes",
]
