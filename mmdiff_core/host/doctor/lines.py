"""What was found, put into lines. Nothing here looks at the disk but for the files it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .report import MISSING, NOTE, OK, Line
from .sources import SOURCES, Source
from .weights import is_kind, wrong_with

OLDEST_COMFYUI = "0.3.75"

# package -> what it is for; told where it is not installed
PACKAGES = {
    "comfyui-frontend-package": "ComfyUI's web page",
    "torch": "everything",
    "einops": "every MM-Diff node",
    "safetensors": "every MM-Diff node",
    "transformers": "ComfyUI's text encoders",
}


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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])
