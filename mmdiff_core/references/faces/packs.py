"""InsightFace's model packs on the disk: <root>/models/<name>/*.onnx. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...untrusted import quoted

TASKS = ("detection", "recognition")
# pack -> the files of the tasks; of other packs the first file of each task counts, by name
KNOWN_FILES = {"buffalo_l": ("det_10g.onnx", "w600k_r50.onnx")}
# its presence means files that only the insightface package knows how to feed
MANIFEST = "manifest.json"
LONGEST_NAME = 200  # characters of a folder's name
LICENCE = (
    "The pretrained InsightFace models (buffalo_l too) are licensed for non-commercial research "
    "only."
)


def list_models(roots: Sequence[Path]) -> dict[str, Path]:
    """Model packs (name -> root) in the folders <root>/models/<name>/*.onnx; of two of one name the
    first counts."""
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        for folder in _subfolders(root / "models"):
            if is_folder_name(folder.name) and onnx_files(folder):
                found.setdefault(folder.name, root)
    return found


def find_root(roots: Sequence[Path], name: str) -> Path:
    """The root that a pack is listed for, or the first one. ValueError as from `home`."""
    home(roots[0], name)
    return list_models(roots).get(name, roots[0])


def is_there(roots: Sequence[Path], name: str) -> bool:
    """Whether something of this name, packed or not, is listed where packs belong or beside it.
    Asks the disk for nothing by that name. ValueError as from `home`."""
    home(roots[0], name)
    listed = [path.name for root in roots for path in (*_entries(root / "models"), *_entries(root))]
    return name in listed or f"{name}.zip" in listed


def is_folder_name(name: object) -> bool:
    """Whether this is the name of a folder, and no path or another kind of value."""
    if not isinstance(name, str) or not name.isprintable() or set(name) & set("/\\:"):
        return False
    return name not in ("", ".", "..") and len(name) <= LONGEST_NAME


def home(root: Path, name: str) -> Path:
    """The folder of a model pack. ValueError unless `name` is that of a folder, before the disk is
    touched."""
    if not is_folder_name(name):
        raise ValueError(
            f"{quoted(name)} is no name of a face model pack; expected the name of a folder in "
            "models/insightface/models, such as 'buffalo_l'."
        )
    return Path(root) / "models" / name


def model_files(root: Path, name: str) -> list[Path]:
    """The files to look into, in the order in which the first of a task counts."""
    folder = home(root, name).resolve()
    return [folder / file for file in KNOWN_FILES.get(name) or onnx_files(folder)]


def check_files(root: Path, name: str) -> None:
    """An error that says where the files should be, and where some were found instead."""
    have = onnx_files(home(root, name))
    lacking = [file for file in KNOWN_FILES.get(name, ()) if file not in have]
    if have and not lacking:
        return
    here = f"has {', '.join(have)} but not {', '.join(lacking)}" if have else "has no .onnx file"
    elsewhere = "".join(
        f" Found {files}: move them into that folder." for files in _misplaced(root, name)
    )
    raise FileNotFoundError(
        f"The face models {name} were not found: the folder {home(root, name)} {here}. Expected "
        f"files: {expected_files(name)}.{elsewhere} Nothing is downloaded: get the pack {name} "
        "from the InsightFace project and unpack it so that these files lie directly in that "
        f"folder. {LICENCE}"
    )


def expected_files(name: str) -> str:
    """The files of a pack in words."""
    return " and ".join(
        KNOWN_FILES.get(name, ("a detection model and a recognition model (*.onnx)",))
    )


def where_to_put() -> str:
    """The sentence on the models that goes with a message on missing packages."""
    return (
        f"Then put the models ({expected_files('buffalo_l')}) into ComfyUI's folder "
        f"models/insightface/models/buffalo_l. {LICENCE}"
    )


def wrong_models(root: Path, name: str, absent: Sequence[str]) -> str:
    """The message on a pack without a model for these tasks."""
    folder = home(root, name)
    return (
        f"The model pack {name} has no {' and no '.join(absent)} model that InsightFace "
        f"recognises. Files under {folder}: {file_sizes(folder)}. Expected files: "
        f"{expected_files(name)}. {LICENCE}"
    )


def file_sizes(folder: Path) -> str:
    """The folder's ONNX files with their sizes."""
    return ", ".join(
        f"{name} ({(folder / name).stat().st_size:,} bytes)" for name in onnx_files(folder)
    )


def onnx_files(folder: Path) -> list[str]:
    """Names of the ONNX files in a folder, sorted; none where it cannot be read."""
    try:
        return sorted(p.name for p in folder.glob("*.onnx") if p.is_file())
    except OSError:
        return []


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in _entries(folder) if path.is_dir()]
    except OSError:  # not to be read
        return []


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, or not to be read
        return []


def _misplaced(root: Path, name: str) -> list[str]:
    """Where a pack ends up that was unpacked one folder too deep or too shallow, or not at all."""
    own = home(root, name)
    places = (*_subfolders(own), own.parent, root / name, root / name / name, root)
    found = []
    for place in places:
        if files := onnx_files(place):
            found.append(f"{', '.join(files)} in {place}")
    zips = [place / f"{name}.zip" for place in (own, own.parent, root)]
    return found + [f"{path} still packed" for path in zips if path.is_file()]
