"""Looking at this computer: versions, folders and files, each part for itself."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Callable, Iterable, Mapping

from ..start import PACK
from .lines import (
    PACKAGES,
    adapter_lines,
    face_pack_lines,
    folder_line,
    kind_lines,
    runtime_lines,
    version_lines,
)
from .report import NOTE, OK, Line
from .sources import FACE_PACK, SOURCES
from .weights import SDXL, VIT_L14, wrong_with

FOLDERS = ("mmdiff", "mmdiff_subjects", "checkpoints", "clip_vision", "insightface")


def examine() -> list[Line]:
    """The whole report. The host has to be importable for the folders; without it they are told as
    not looked at."""
    parts: dict[str, Callable[[], Iterable[Line]]] = {
        "Versions": lambda: version_lines(versions(), device()),
        "Faces": look_at_runtimes,
        "Folders": look_at_folders,
        "MM-Diff checkpoints": look_at_adapters,
        "Base models": lambda: look_for("checkpoints", "Base models", "an SDXL checkpoint", SDXL),
        "Image encoder": lambda: look_for(
            "clip_vision", "Image encoder", "CLIP ViT-L/14 (224 px)", VIT_L14
        ),
        "Face models": look_at_face_models,
        "Saved subjects": look_at_subjects,
    }
    return [line for part, look in parts.items() for line in _told(part, look)]


def _told(part: str, look: Callable[[], Iterable[Line]]) -> list[Line]:
    """A part's lines, or the line that it could not be looked at: a report that ends half-way helps
    nobody."""
    try:
        return list(look())
    except Exception as error:
        return [Line(NOTE, part, f"could not be checked: {type(error).__name__}: {error}")]


def versions() -> dict[str, str | None]:
    """Versions by name; None = not there."""
    found: dict[str, str | None] = {name: _version_of(name) for name in PACKAGES}
    own = re.search(
        r'^version = "(.+)"', (PACK / "pyproject.toml").read_text(encoding="utf-8"), re.M
    )
    return {
        "MM-Diff": own[1] if own else None,
        "Python": platform.python_version(),
        "ComfyUI": _comfyui_version(),
        **found,
    }


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _comfyui_version() -> str | None:
    try:
        from comfyui_version import __version__
    except ImportError:
        return None
    return __version__


def device() -> str:
    """Where torch computes in this process, in the host's words."""
    try:
        import comfy.model_management as mm
    except ImportError:
        return "a device that only ComfyUI knows"
    return mm.get_torch_device_name(mm.get_torch_device())


def look_at_runtimes() -> list[Line]:
    import torch  # before the faces, which tell the package for this GPU by it

    from ...references import faces

    found = faces.runtimes()
    try:
        faces.require_packages()
        offered = faces.available_providers()
    except ImportError as error:
        return runtime_lines(found, str(error), (), None)
    advice = faces.provider_advice(found, offered, torch.cuda.is_available())
    lines = runtime_lines(found, None, offered, advice)
    if version := _version_of("insightface"):
        lines.append(Line(OK, "Faces", f"insightface {version}; optional, the backend insightface"))
    return lines


def look_at_folders() -> list[Line]:
    from .. import files

    return [folder_line(name, files.roots(name)) for name in FOLDERS]


def look_at_adapters() -> list[Line]:
    from ...checkpoints.released import FILES
    from .. import files

    folders, singles = [], []
    for name in files.list_checkpoints():
        path = files.find_checkpoint(name)
        (folders if path.is_dir() else singles).append(path)
    return adapter_lines(folders, singles, FILES)


def look_for(folder: str, part: str, kind: str, signs: Mapping[str, tuple[int, ...]]) -> list[Line]:
    from .. import files

    return kind_lines(part, files.paths(folder), kind, signs, SOURCES[folder])


def look_at_face_models() -> list[Line]:
    from ...references import faces
    from .. import files

    roots = files.roots(files.FACES)
    packs = faces.list_models(roots)
    try:
        faces.check_files(packs.get(FACE_PACK, roots[0]), FACE_PACK)
    except FileNotFoundError as error:
        return face_pack_lines(packs, str(error), faces.LICENCE)
    return face_pack_lines(packs, None, faces.LICENCE)


def look_at_subjects() -> list[Line]:
    from .. import files

    found = files.paths(files.SUBJECTS)
    broken = [
        Line(NOTE, "Saved subjects", f"{path.name} {wrong}")
        for path in found
        if (wrong := wrong_with(path))
    ]
    return [Line(OK, "Saved subjects", f"{len(found)} saved" if found else "none yet"), *broken]
