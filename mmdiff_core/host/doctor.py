"""What the pack finds on this computer, what is missing, and where it comes from. It reports and
changes nothing.

Shown by the node MM-Diff Doctor and by `python -m mmdiff_core doctor`. Nothing is downloaded, and
nothing that is missing is an error here: it is a line.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .start import PACK

OK, NOTE, MISSING = "ok", "note", "missing"
OLDEST_COMFYUI = "0.3.75"
FOLDERS = ("mmdiff", "mmdiff_subjects", "checkpoints", "clip_vision", "insightface")
INDENT = "\n" + 10 * " "  # of a line's further rows in the report
FACE_PACK = "buffalo_l"  # what the released checkpoint was trained with

# package -> what it is for; told where it is not installed
PACKAGES = {
    "comfyui-frontend-package": "ComfyUI's web page",
    "torch": "everything",
    "einops": "every MM-Diff node",
    "safetensors": "every MM-Diff node",
    "transformers": "ComfyUI's text encoders",
    "insightface": "face analysis, which portrait checkpoints require unless clip_only is on",
}


@dataclass(frozen=True)
class Source:
    """Something a person gets themselves: from which page, for which folder below models/, under
    which licence."""

    what: str
    page: str
    place: str
    licence: str

    def __str__(self) -> str:
        return (
            f"Get {self.what} from {self.page}, put it into models/{self.place}. Licence: "
            f"{self.licence}."
        )


SOURCES = {
    "mmdiff": Source(
        "portrait_generation (three .bin files)",
        "the link in the README of https://github.com/alibaba/mm-diff",
        "mmdiff/portrait_generation/",
        "not stated by its authors",
    ),
    "checkpoints": Source(
        "SDXL base 1.0, or a fine-tune of it",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0",
        "checkpoints",
        "its own, see that page",
    ),
    "clip_vision": Source(
        "CLIP ViT-L/14 (model.safetensors)",
        "https://huggingface.co/openai/clip-vit-large-patch14",
        "clip_vision",
        "MIT",
    ),
    "insightface": Source(
        FACE_PACK,
        "https://github.com/deepinsight/insightface",
        f"insightface/models/{FACE_PACK}/",
        "non-commercial research only",
    ),
}

# what tells a file's kind in its header: a weight's name (its end) and its shape
VIT_L14 = {
    "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "vision_model.embeddings.position_embedding.weight": (257, 1024),
    "visual_projection.weight": (768, 1024),
}
DEEPEST_KEY = "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight"
SDXL = {DEEPEST_KEY: (1280, 2048)}
NOT_WEIGHTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself",
    b"<!doctype": "is a web page",
    b"<html": "is a web page",
}


@dataclass(frozen=True)
class Line:
    """One line of the report: ok, note (worth knowing) or missing."""

    state: str
    part: str  # the heading it stands under
    text: str


# ---------------------------------------------------------------- what is found -> lines; these
# know no host


def version_lines(versions: Mapping[str, str | None], device: str) -> list[Line]:
    """ComfyUI, Python and the packages; None = not there. `device` is where torch computes."""

    def line(name: str, use: str) -> Line:
        if versions.get(name) is None:
            return Line(MISSING, "Versions", f"{name} is not installed; needed for {use}")
        return Line(
            OK,
            "Versions",
            f"{name} {versions[name]}" + (f", computing on {device}" if name == "torch" else ""),
        )

    comfyui = versions.get("ComfyUI")
    if comfyui is None:
        first = Line(MISSING, "Versions", "no ComfyUI found, so its folders are unknown")
    elif _numbers(comfyui) < _numbers(OLDEST_COMFYUI):
        first = Line(
            NOTE,
            "Versions",
            f"ComfyUI {comfyui} is older than {OLDEST_COMFYUI}, the oldest version that the pack "
            "supports",
        )
    else:
        first = Line(OK, "Versions", f"ComfyUI {comfyui}")
    own = [
        Line(OK, "Versions", f"{name} {versions[name]}")
        for name in ("MM-Diff", "Python")
        if versions.get(name)
    ]
    return [*own, first, *(line(name, use) for name, use in PACKAGES.items())]


def runtime_lines(
    runtimes: Mapping[str, str], problem: str | None, offered: Sequence[str], advice: str | None
) -> list[Line]:
    """onnxruntime's packages, why faces cannot be read (None: they can), the providers offered, and
    what `provider_advice` says."""
    lines = [Line(OK, "Faces", f"{name} {version}") for name, version in runtimes.items()]
    if problem:
        return [*lines, Line(MISSING, "Faces", problem)]
    lines.append(Line(OK, "Faces", f"onnxruntime offers {', '.join(offered) or 'nothing'}"))
    if advice:
        lines.append(Line(NOTE, "Faces", advice))
    elif {"onnxruntime", "onnxruntime-gpu"} <= set(runtimes):
        lines.append(
            Line(OK, "Faces", "the GPU build is in use; the installed CPU build does not shadow it")
        )
    return lines


def folder_line(name: str, roots: Sequence[Path]) -> Line:
    """Where this kind of file is looked for."""
    places = ", ".join(f"{root}{'' if root.is_dir() else ' (does not exist)'}" for root in roots)
    return Line(
        OK if any(root.is_dir() for root in roots) else NOTE,
        "Folders",
        f"{name}: {places or 'no folder is set'}",
    )


def adapter_lines(
    folders: Sequence[Path], singles: Sequence[Path], expected: Sequence[str]
) -> list[Line]:
    """Every checkpoint: `folders` in the released layout, with the `expected` files, and single
    files."""
    lines = []
    for folder in folders:
        wrong = [f"{name} {wrong}" for name in expected if (wrong := wrong_with(folder / name))]
        told = "; ".join(wrong) or f"all {len(expected)} files found"
        state = MISSING if wrong else OK
        lines.append(Line(state, "MM-Diff checkpoints", f"{folder.name}: {told}"))
    for path in singles:
        wrong = wrong_with(path)
        lines.append(
            Line(
                NOTE if wrong else OK,
                "MM-Diff checkpoints",
                f"{path.name}{' ' + wrong if wrong else ''}",
            )
        )
    if not any(line.state == OK for line in lines):
        lines.append(
            Line(
                MISSING,
                "MM-Diff checkpoints",
                f"no complete checkpoint. {SOURCES['mmdiff']} The small world does not need one.",
            )
        )
    return lines


def kind_lines(
    part: str,
    files: Sequence[Path],
    kind: str,
    signs: Mapping[str, tuple[int, ...]],
    source: Source,
) -> list[Line]:
    """Whether one of the files is of the kind whose header has these signs, and which files are no
    weights at all."""
    told = {path: wrong_with(path) for path in files}
    broken = [Line(NOTE, part, f"{path.name} {wrong}") for path, wrong in told.items() if wrong]
    usable = [path for path, wrong in told.items() if not wrong]
    if match := next((path for path in usable if is_kind(path, signs)), None):
        return [*broken, Line(OK, part, f"{match.name} is {kind}")]
    if unread := [path.name for path in usable if path.suffix not in (".safetensors", ".sft")]:
        return [
            *broken,
            Line(
                NOTE,
                part,
                f"{', '.join(unread[:3])}: only .safetensors files can be identified; if none of "
                f"these is {kind}: {source}",
            ),
        ]
    return [
        *broken,
        Line(
            MISSING,
            part,
            f"none of the {len(usable)} files is {kind}. {source}"
            if usable
            else f"nothing there. {source}",
        ),
    ]


def face_pack_lines(packs: Mapping[str, Path], problem: str | None, licence: str) -> list[Line]:
    """InsightFace's model packs (name -> root), and what is wrong with the one the released
    checkpoint needs."""
    lines = []
    for name, root in packs.items():
        wrong = [
            f"{path.name} {wrong}"
            for path in sorted((root / "models" / name).glob("*.onnx"))
            if (wrong := wrong_with(path))
        ]
        lines.append(
            Line(NOTE, "Face models", f"{name}: {'; '.join(wrong)}")
            if wrong
            else Line(OK, "Face models", f"{name} in {root}")
        )
    if problem:
        return [
            *lines,
            Line(MISSING, "Face models", f"{problem} Its page: {SOURCES['insightface'].page}"),
        ]
    return [*lines, Line(OK, "Face models", licence)]


def wrong_with(path: Path) -> str | None:
    """Why this cannot be a file of weights, from its size and first bytes; None = nothing seen."""
    try:
        if not path.is_file():
            return "is missing"
        with path.open("rb") as file:
            head = file.read(32).lstrip().lower()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return (
        "is empty"
        if not head
        else next((said for start, said in NOT_WEIGHTS.items() if head.startswith(start)), None)
    )


def is_kind(path: Path, signs: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a .safetensors has every one of these weights in this shape; reads its header
    only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            names = set(file.keys())
            return all(
                name in names and tuple(file.get_slice(name).get_shape()) == shape
                for name, shape in signs.items()
            )
    except (SafetensorError, OSError):
        return False


def render(lines: Sequence[Line]) -> str:
    """The report as text: the count, then each part with its lines."""
    count = Counter(line.state for line in lines)
    head = f"MM-Diff Doctor: {count[MISSING]} missing, {count[NOTE]} note{'s' * (count[NOTE] != 1)}"
    rows = [head]
    for part in dict.fromkeys(line.part for line in lines):
        rows += [
            "",
            part,
            *(
                f"  {line.state:8}{line.text}".replace("\n", INDENT)
                for line in lines
                if line.part == part
            ),
        ]
    return "\n".join(rows)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


# ---------------------------------------------------------------- looking


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
    from ..references import faces

    installed = faces.runtimes()
    try:
        faces.require_packages()
        offered = faces.available_providers()
    except ImportError as error:
        return runtime_lines(installed, str(error), (), None)
    import torch

    return runtime_lines(
        installed,
        None,
        offered,
        faces.provider_advice(installed, offered, torch.cuda.is_available()),
    )


def look_at_folders() -> list[Line]:
    from . import files

    return [folder_line(name, files.roots(name)) for name in FOLDERS]


def look_at_adapters() -> list[Line]:
    from ..checkpoints.released import FILES
    from . import files

    folders, singles = [], []
    for name in files.list_checkpoints():
        path = files.find_checkpoint(name)
        (folders if path.is_dir() else singles).append(path)
    return adapter_lines(folders, singles, FILES)


def look_for(folder: str, part: str, kind: str, signs: Mapping[str, tuple[int, ...]]) -> list[Line]:
    from . import files

    return kind_lines(part, files.paths(folder), kind, signs, SOURCES[folder])


def look_at_face_models() -> list[Line]:
    from ..references import faces
    from . import files

    roots = files.roots(files.FACES)
    packs = faces.list_models(roots)
    try:
        faces.check_files(packs.get(FACE_PACK, roots[0]), FACE_PACK)
    except FileNotFoundError as error:
        return face_pack_lines(packs, str(error), faces.LICENCE)
    return face_pack_lines(packs, None, faces.LICENCE)


def look_at_subjects() -> list[Line]:
    from . import files

    found = files.paths(files.SUBJECTS)
    broken = [
        Line(NOTE, "Saved subjects", f"{path.name} {wrong}")
        for path in found
        if (wrong := wrong_with(path))
    ]
    return [Line(OK, "Saved subjects", f"{len(found)} saved" if found else "none yet"), *broken]
