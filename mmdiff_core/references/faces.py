"""Faces in pictures: detection, embedding and aligned crops by InsightFace, from models that are
already on the disk.

The only module that touches insightface and onnxruntime, and only when a function needs them.
Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

DETECTOR_SIZES = (640, 512, 384, 320, 256, 192, 128)  # tried in turn until a face is found
# then black borders, as parts of the longer side
BORDERS = (0.25, 0.5, 1.0)
THRESHOLD = 0.5  # lowest detector confidence that counts
CROP_SIZE = 224
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# Left out: TensorRT and MIGraphX compile anew for every detector size; CoreML can end the process
# when it changes.
AUTOMATIC_PROVIDERS = (CUDA, "ROCMExecutionProvider", "DmlExecutionProvider", CPU)
DEVICES = ("auto", "cuda", "cpu")
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-silicon",
)
TASKS = ("detection", "recognition")
KNOWN_FILES = {"buffalo_l": ("det_10g.onnx", "w600k_r50.onnx")}
LICENCE = (
    "The pretrained InsightFace models (buffalo_l too) are licensed for non-commercial research "
    "only."
)


Box = tuple[float, float, float, float]  # x1 y1 x2 y2


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face, in pixels of the picture given."""

    box: Box
    score: float  # detector confidence 0..1
    landmarks: np.ndarray  # [5 2] eyes, nose, mouth corners as (x, y)
    embedding: np.ndarray  # [512] unit length ArcFace embedding
    # of a picked face: all that could have been picked, from left to right, itself too
    among: tuple[Box, ...] = ()

    @property
    def area(self) -> float:
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)


class FaceAnalyser:
    """A loaded InsightFace model pack."""

    def __init__(self, app: Any, name: str, root: Path):
        self.name = name
        self.root = root
        self._detector = app.models["detection"]
        self._recogniser = app.models["recognition"]
        self.providers: tuple[str, ...] = tuple(self._detector.session.get_providers())
        self._sizes = _detector_sizes(self._detector)

    def __repr__(self) -> str:
        return f"FaceAnalyser({self.name}, {', '.join(self.providers)})"

    def detect(self, image: np.ndarray, label: str = "image") -> tuple[Face, ...]:
        """All faces of a uint8 RGB picture [H W 3] from left to right; empty when every attempt
        found none."""
        _check_image(image, label)
        bgr = np.ascontiguousarray(image[..., ::-1])
        for boxes, landmarks in self._attempts(bgr):
            if len(boxes):
                faces = [
                    self._face(bgr, box, points)
                    for box, points in zip(boxes, landmarks, strict=True)
                ]
                return tuple(sorted(faces, key=lambda face: face.box[0] + face.box[2]))
        return ()

    def pick(
        self,
        image: np.ndarray,
        which: int = 0,
        label: str = "image",
        region: np.ndarray | None = None,
    ) -> Face:
        """One face: the largest for 0, the n-th from the left for n >= 1; of those with their
        middle in `region` [H W] if there is one."""
        if which < 0:
            raise ValueError(
                f"{label}: face {which} was requested; 0 is the largest face, 1 the leftmost."
            )
        faces = self.detect(image, label)
        if not faces:
            raise ValueError(self._no_face(image, label))
        if region is not None:
            inside = tuple(face for face in faces if _inside(face, region))
            if not inside:
                raise ValueError(
                    f"{label}: none of the faces in the image ({len(faces)}) has its centre in the "
                    "region. Make the region cover the face, or choose the face by its number."
                )
            faces = inside
        if which > len(faces):
            raise ValueError(
                f"{label}: face {which} from the left was requested, but there "
                f"{_count(len(faces))}. Choose 1 to {len(faces)}, or 0 for the largest."
            )
        picked = faces[which - 1] if which else max(faces, key=lambda face: face.area)
        return replace(picked, among=tuple(face.box for face in faces))

    def portrait(
        self,
        image: np.ndarray,
        which: int = 0,
        label: str = "image",
        region: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, Face]:
        """The picked face's embedding [512], its aligned crop, uint8 RGB [224 224 3], and the
        face."""
        face = self.pick(image, which, label, region)
        return face.embedding, align(image, face.landmarks), face

    def _attempts(self, bgr: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Boxes with scores [n 5] and landmarks [n 5 2] of each attempt, in coordinates of the
        picture itself."""
        for border in (0.0, *BORDERS):
            pixels = round(border * max(bgr.shape[:2]))
            padded = np.pad(bgr, ((pixels, pixels), (pixels, pixels), (0, 0)))
            for size in self._sizes:
                boxes, landmarks = self._detector.detect(padded, input_size=size)
                offset = np.array([pixels] * 4 + [0], dtype=np.float32)
                yield boxes - offset, landmarks - pixels

    def _face(self, bgr: np.ndarray, box: np.ndarray, landmarks: np.ndarray) -> Face:
        from insightface.app.common import Face as Found

        found = Found(bbox=box[:4], kps=landmarks, det_score=box[4])
        embedding = np.asarray(self._recogniser.get(bgr, found), dtype=np.float32)
        length = float(np.linalg.norm(embedding))
        if not np.isfinite(length) or length == 0:
            raise RuntimeError(
                f"The recognition model of {self.name} returned an embedding of length {length}. "
                f"The file may be damaged: reinstall the files under {_home(self.root, self.name)}."
            )
        x1, y1, x2, y2, score = (float(v) for v in box)
        return Face((x1, y1, x2, y2), score, np.asarray(landmarks, np.float32), embedding / length)

    def _no_face(self, image: np.ndarray, label: str) -> str:
        height, width = image.shape[:2]
        sizes = ", ".join(str(w) if w == h else f"{w} x {h}" for w, h in self._sizes)
        borders = ", ".join(f"{border:.0%}" for border in BORDERS)
        return (
            f"{label}: no face found in this image of {width} x {height} pixels. Tried {self.name} "
            f"at detector sizes {sizes}, on the image itself and with black borders of {borders} "
            f"of its longer side; lowest confidence {THRESHOLD}. Use an upright image in which "
            "eyes, nose and mouth are visible and the face is at least about 30 pixels wide."
        )


def _inside(face: Face, region: np.ndarray) -> bool:
    x1, y1, x2, y2 = face.box
    row, column = (
        min(max(int(middle), 0), size - 1)
        for middle, size in zip(((y1 + y2) / 2, (x1 + x2) / 2), region.shape, strict=True)
    )
    return bool(region[row, column] > 0.5)


def align(image: np.ndarray, landmarks: np.ndarray, size: int = CROP_SIZE) -> np.ndarray:
    """The face turned upright and scaled to ArcFace's template: uint8 RGB [size size 3]."""
    _check_image(image, "image to align")
    if size < 112 or (size % 112 and size % 128):
        raise ValueError(f"aligned size {size}; InsightFace aligns to multiples of 112 or of 128")
    require_packages()
    from insightface.utils import face_align

    bgr = np.ascontiguousarray(image[..., ::-1])
    crop = face_align.norm_crop(bgr, landmark=np.asarray(landmarks, np.float32), image_size=size)
    return np.ascontiguousarray(crop[..., ::-1])


def draw(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """A copy of the picture with every face's box, landmarks and number from the left."""
    _check_image(image, "image to draw on")
    import cv2

    canvas = np.ascontiguousarray(image).copy()
    line = max(1, round(max(image.shape[:2]) / 320))
    for number, face in enumerate(faces, 1):
        x1, y1, x2, y2 = (round(v) for v in face.box)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), (0, 255, 0), line)
        for x, y in face.landmarks:
            cv2.circle(canvas, (round(float(x)), round(float(y))), 2 * line, (255, 255, 0), -1)
        origin = (max(x1, 0) + 2 * line, max(y1, 0) + 12 * line)
        cv2.putText(
            canvas, str(number), origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * line, (0, 255, 0), line
        )
    return canvas


def load_analyser(root: Path, name: str = "buffalo_l", device: str = "auto") -> FaceAnalyser:
    """Loads the detector and the recogniser of <root>/models/<name>; device is auto, cuda or
    cpu."""
    require_packages()
    root = Path(root)
    check_files(root, name)
    wanted = choose_providers(device, available_providers(), runtimes())
    app = _open(root, name, wanted)
    analyser = FaceAnalyser(app, name, root)
    _report_providers(device, wanted, analyser)
    return analyser


def installed() -> bool:
    """Whether insightface and onnxruntime are there to be imported."""
    return not _missing_packages()


def available_providers() -> tuple[str, ...]:
    """What the installed onnxruntime offers."""
    require_packages("onnxruntime")
    return tuple(importlib.import_module("onnxruntime").get_available_providers())


def choose_providers(
    device: str, available: Sequence[str], distributions: Mapping[str, str]
) -> tuple[str, ...]:
    """The providers to ask for, best first."""
    if device not in DEVICES:
        raise ValueError(
            f"Unknown device {device!r} for faces; choose one of {', '.join(DEVICES)}."
        )
    if device == "cpu":
        return (CPU,)
    if device == "cuda" and CUDA not in available:
        advice = provider_advice(distributions, available, cuda_wanted=True)
        raise RuntimeError(
            f"CUDA was chosen for faces; onnxruntime offers none. {advice}\nOr choose auto or cpu."
        )
    offered = tuple(p for p in AUTOMATIC_PROVIDERS if p in available)
    return tuple(p for p in offered if p in (CUDA, CPU)) if device == "cuda" else offered


def provider_advice(
    distributions: Mapping[str, str], available: Sequence[str], cuda_wanted: bool
) -> str | None:
    """What is wrong with the installed onnxruntime packages, and what to run; None if nothing
    is."""
    if CUDA in available:
        return None
    gpu = distributions.get("onnxruntime-gpu")
    installed = ", ".join(f"{n} {v}" for n, v in distributions.items())
    found = (
        f"Installed: {installed or 'no onnxruntime package'}; offered: "
        f"{', '.join(available) or 'nothing'}."
    )
    if gpu:
        repair = _pip("install --force-reinstall --no-deps onnxruntime-gpu")
        return (
            f"{found} The files of onnxruntime-gpu were overwritten, most likely by the CPU "
            f"package onnxruntime, which insightface asks for. Repair: {repair}=={gpu}"
        )
    if cuda_wanted:
        return f"{found} For an NVIDIA GPU run: {_pip('install')} onnxruntime-gpu"
    return None


def list_models(roots: Sequence[Path]) -> dict[str, Path]:
    """Model packs (name -> root) in the folders <root>/models/<name>/*.onnx; of two of one name the
    first counts."""
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        for folder in _subfolders(root / "models"):
            if _onnx_files(folder):
                found.setdefault(folder.name, root)
    return found


def _open(root: Path, name: str, providers: Sequence[str]) -> Any:
    """InsightFace's FaceAnalysis. Its name is the folder itself, so it never looks elsewhere, let
    alone downloads."""
    folder = _home(root, name).resolve()
    _preload_gpu_libraries(providers)
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
        raise FileNotFoundError(_wrong_models(root, name, TASKS[:1])) from None
    except Exception as error:
        raise RuntimeError(
            f"The model pack {name} could not be loaded: {error}. Files in {folder}: "
            f"{_sizes(folder)}. A file may be damaged or incomplete: reinstall it."
        ) from error
    absent = [task for task in TASKS if task not in app.models]
    if absent:
        raise FileNotFoundError(_wrong_models(root, name, absent))
    if not app.models["detection"].use_kps:
        raise RuntimeError(
            f"The detector of {name} finds no landmarks, which alignment needs: {_sizes(folder)}."
        )
    app.prepare(ctx_id=0, det_thresh=THRESHOLD, det_size=(DETECTOR_SIZES[0],) * 2)
    return app


def _preload_gpu_libraries(providers: Sequence[str]) -> None:
    """Lets onnxruntime find the CUDA and cuDNN libraries of torch's packages, as InsightFace 2 does
    by itself."""
    if importlib.util.find_spec("insightface.model_zoo.onnxruntime_utils"):
        return
    preload = getattr(importlib.import_module("onnxruntime"), "preload_dlls", None)
    if CUDA in providers and callable(preload):
        preload()


def _report_providers(device: str, wanted: Sequence[str], analyser: FaceAnalyser) -> None:
    """One warning when the GPU was asked for, or could have been, and is not used."""
    advice = provider_advice(runtimes(), available_providers(), cuda_wanted=device == "cuda")
    if CUDA in wanted and CUDA not in analyser.providers:
        log.warning(
            "Faces run on %s: onnxruntime offers CUDA but could not start it. Its own message "
            "above says why; usually there is no NVIDIA GPU, or CUDA or cuDNN is not the version "
            "that onnxruntime-gpu needs. Choose device cpu to load without trying.",
            ", ".join(analyser.providers),
        )
    elif advice and device != "cpu":
        log.warning("Faces run on %s. %s", ", ".join(analyser.providers), advice)
    log.info("Faces: %s from %s on %s", analyser.name, analyser.root, ", ".join(analyser.providers))


def _detector_sizes(detector: Any) -> tuple[tuple[int, int], ...]:
    """(width, height) of every attempt; a detector made for one size has only that one."""
    height, width = detector.session.get_inputs()[0].shape[2:4]
    if isinstance(height, int) and isinstance(width, int):
        return ((width, height),)
    return tuple((size, size) for size in DETECTOR_SIZES)


def _check_image(image: np.ndarray, label: str) -> None:
    found = type(image).__name__
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return
        found = f"{image.dtype} {list(image.shape)}"
    raise ValueError(f"{label}: expected a uint8 RGB array [height width 3], got {found}")


def _count(faces: int) -> str:
    return "is 1 face" if faces == 1 else f"are {faces} faces"


def _home(root: Path, name: str) -> Path:
    return Path(root) / "models" / name


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _onnx_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.onnx")) if folder.is_dir() else []


def _sizes(folder: Path) -> str:
    return ", ".join(
        f"{name} ({(folder / name).stat().st_size:,} bytes)" for name in _onnx_files(folder)
    )


def check_files(root: Path, name: str) -> None:
    """An error that says where the files should be, and where some were found instead."""
    have = _onnx_files(_home(root, name))
    lacking = [file for file in KNOWN_FILES.get(name, ()) if file not in have]
    if have and not lacking:
        return
    here = f"has {', '.join(have)} but not {', '.join(lacking)}" if have else "has no .onnx file"
    elsewhere = "".join(
        f" Found {files}: move them into that folder." for files in _misplaced(root, name)
    )
    raise FileNotFoundError(
        f"The face models {name} were not found: the folder {_home(root, name)} {here}. Expected "
        f"files: {_expected(name)}.{elsewhere} Nothing is downloaded: get the pack {name} from the "
        "InsightFace project and unpack it so that these files lie directly in that folder. "
        f"{LICENCE}"
    )


def _expected(name: str) -> str:
    return " and ".join(
        KNOWN_FILES.get(name, ("a detection model and a recognition model (*.onnx)",))
    )


def _misplaced(root: Path, name: str) -> list[str]:
    """Where a pack ends up that was unpacked one folder too deep or too shallow, or not at all."""
    home = _home(root, name)
    places = (*_subfolders(home), home.parent, root / name, root / name / name, root)
    found = [
        f"{', '.join(_onnx_files(place))} in {place}" for place in places if _onnx_files(place)
    ]
    zips = [place / f"{name}.zip" for place in (home, home.parent, root)]
    return found + [f"{path} still packed" for path in zips if path.is_file()]


def _wrong_models(root: Path, name: str, absent: Sequence[str]) -> str:
    folder = _home(root, name)
    return (
        f"The model pack {name} has no {' and no '.join(absent)} model that InsightFace "
        f"recognises. Files under {folder}: {_sizes(folder)}. Expected files: {_expected(name)}. "
        f"{LICENCE}"
    )


def runtimes() -> dict[str, str]:
    """Installed onnxruntime packages and their versions; they all share one folder, and the last
    one installed wins."""
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _pip(command: str) -> str:
    return f'"{sys.executable}" -m pip {command}'


def _missing_packages(*names: str) -> list[str]:
    return [
        name
        for name in names or ("insightface", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]


def require_packages(*names: str) -> None:
    """ImportError that says what to run, unless these packages (insightface and onnxruntime) are
    there and can be imported."""
    names = names or ("insightface", "onnxruntime")
    missing = _missing_packages(*names)
    if missing:
        raise ImportError(
            f"Faces need the Python package {' and '.join(missing)}, which this Python does not "
            f"have. Run: {_pip('install')} {' '.join(missing)}\n"
            f"Then put the models ({_expected('buffalo_l')}) into ComfyUI's folder "
            f"models/insightface/models/buffalo_l. {LICENCE}"
        )
    for name in names:
        _import(name)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise ImportError(
            f"The Python package {name} is installed but cannot be imported: {error}. Try: "
            f"{_pip('install --force-reinstall --no-deps')} {name}"
        ) from error
