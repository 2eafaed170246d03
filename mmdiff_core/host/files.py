"""Model folders: where checkpoints and face models live, what is there, and what to say when it is
not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ..checkpoints.checkpoint import is_official_folder
from ..references import faces
from ..untrusted import quoted, quoted_list
from .doctor.sources import RELEASED, SOURCES

CHECKPOINTS = "mmdiff"
FACES = "insightface"
SUBJECTS = "mmdiff_subjects"
SUFFIX = ".safetensors"
UNUSABLE = '<>:"|?*\\'  # in file names, on one system or another
LONGEST_PART = 220  # bytes of a folder's or a file's name: disks take 255, with what is added to it
LONGEST_PATH = 1000


def register_folders() -> None:
    """Add models/mmdiff, models/mmdiff_subjects and models/insightface to what ComfyUI knows, after
    the entries of extra_model_paths.yaml: whoever has set a folder there means it."""
    for name in (CHECKPOINTS, FACES, SUBJECTS):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
    for name in (CHECKPOINTS, SUBJECTS):
        paths, _ = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, {SUFFIX})


def roots(name: str) -> list[Path]:
    return [Path(p) for p in folder_paths.get_folder_paths(name)]


def paths(name: str) -> list[Path]:
    """Every file that the host lists for this kind of model."""
    found = (
        folder_paths.get_full_path(name, file) for file in folder_paths.get_filename_list(name)
    )
    return [Path(path) for path in found if path]


def list_checkpoints() -> list[str]:
    """Names for the combo: our single files, and folders that hold the released .bin files."""
    singles = folder_paths.get_filename_list(CHECKPOINTS)
    folders = [
        p.name
        for root in roots(CHECKPOINTS)
        if root.is_dir()
        for p in sorted(root.iterdir())
        if is_official_folder(p)
    ]
    return sorted({*singles, *folders})


def _paths(kind: str, name: object, listed: Sequence[str]) -> list[Path]:
    """Where a listed name may be; nowhere for any other. A graph from another system may write the
    separators of folders in another way."""
    if not isinstance(name, str):
        return []
    plain = {each.replace("\\", "/"): each for each in listed}
    found = name if name in listed else plain.get(name.replace("\\", "/"))
    return [] if found is None else [root / found for root in roots(kind)]


def find_checkpoint(name: str) -> Path:
    """Path of a combo entry. Only listed names are looked for on disk. FileNotFoundError names the
    folders searched, what was found there, and where the released checkpoint comes from."""
    listed = list_checkpoints()
    for path in _paths(CHECKPOINTS, name, listed):
        if path.is_file() or is_official_folder(path):
            return path
    raise FileNotFoundError(
        f"MM-Diff checkpoint {quoted(name)} not found. Searched: "
        f"{', '.join(map(str, roots(CHECKPOINTS)))}; found there: "
        f"{quoted_list(listed)}. {_where_from(name, listed)}"
    )


def list_models(kind: str) -> list[str]:
    """Names of the files that the host lists for a kind of model, such as "checkpoints"."""
    return list(folder_paths.get_filename_list(kind))


def find_listed(kind: str, what: str, name: str) -> Path:
    """Path of a file that the host lists among one kind of model, such as "checkpoints".
    FileNotFoundError says `what` was looked for, names the folders searched, what was found there
    and where the one of the paper comes from."""
    listed = list_models(kind)
    for path in _paths(kind, name, listed):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{what} {quoted(name)} not found. Searched: {', '.join(map(str, roots(kind)))}; found "
        f"there: {quoted_list(listed)}. {SOURCES[kind]}"
    )


def _where_from(name: object, listed: Sequence[str]) -> str:
    """What to do about a checkpoint that is not there."""
    if name == RELEASED or not listed:
        return str(SOURCES[CHECKPOINTS])
    return (
        "Put the file there, or choose one that was found. The released checkpoint is "
        f"{RELEASED}, from {SOURCES[CHECKPOINTS].page}."
    )


def list_face_models() -> list[str]:
    """Names of the face model packs that are there."""
    return sorted(faces.list_models(roots(FACES)))


def find_face_models(name: str) -> Path:
    """The root of a face model pack that has its files. Only names that are known or listed are
    looked for on disk. FileNotFoundError names the folder, the files, the packs that are there and
    the page; ValueError for what is no folder's name."""
    searched, found = roots(FACES), list_face_models()
    root = faces.find_root(searched, name)
    where = f"Its page: {SOURCES[FACES].page}. Packs found: {quoted_list(found)}."
    if name not in faces.KNOWN_FILES and not faces.is_there(searched, name):
        raise FileNotFoundError(
            f"The face models {quoted(name)} were not found. Searched: the subfolders of "
            f"{', '.join(str(folder / 'models') for folder in searched)}. Put the folder of the "
            f"pack, with its .onnx files, there, or choose one that was found. {where}"
        )
    try:
        faces.check_files(root, name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} {where}") from error
    return root


def target_path(name: str) -> Path:
    """Where a converted checkpoint goes: inside the first mmdiff folder. ValueError for a name that
    is none, or that leads elsewhere."""
    return inside(roots(CHECKPOINTS)[0], name)


def list_subjects() -> list[str]:
    """Names of the saved subjects for the combo."""
    known = SUBJECTS in folder_paths.folder_names_and_paths
    return sorted(folder_paths.get_filename_list(SUBJECTS)) if known else []


def find_subject(name: str) -> Path:
    """Path of a saved subject. Only listed names are looked for on disk. FileNotFoundError names
    the folders searched and what was found there."""
    listed = list_subjects()
    for path in _paths(SUBJECTS, name, listed):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"there is no saved subject {quoted(name)}. Searched: "
        f"{', '.join(map(str, roots(SUBJECTS)))}; found there: "
        f"{quoted_list(listed)}. Save one with Save MM-Diff Subject, as the bundled workflow "
        "19 Save subjects does, then press R."
    )


def subject_path(name: str, overwrite: bool) -> Path:
    """Where a subject of this name goes, inside the first mmdiff_subjects folder; without
    `overwrite` a taken name gets a number. ValueError for a name that leads elsewhere."""
    root = roots(SUBJECTS)[0]
    plain = "".join(c if c not in UNUSABLE and c.isprintable() else "_" for c in name).strip()
    path = inside(root, plain)
    stem, number = path.name, 2
    path = inside(root, f"{plain}{SUFFIX}")
    while not overwrite and path.exists():
        path = path.with_name(f"{stem}_{number}{SUFFIX}")
        number += 1
    return path


def inside(root: Path, name: str) -> Path:
    """`root / name`. A matter of the name alone: folders and files may be links that lead anywhere.
    ValueError for an empty name, one that leaves the folder, or one that no disk takes."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" and len(parts) > 1 or ":" in parts[0] or ".." in parts:
        raise ValueError(f"the name {quoted(name)} points outside {root}; use a plain name")
    if not parts[-1].strip(". "):
        raise ValueError(
            f"the name {quoted(name)} names a folder and no file in it; add the file's name"
        )
    if any(not c.isprintable() or c in UNUSABLE for c in name.replace("\\", "/")):
        raise ValueError(
            f"the name {quoted(name)} contains characters that not every disk takes; use letters, "
            "digits, spaces, - and _"
        )
    longest = max(len(os.fsencode(part)) for part in parts)
    if longest > LONGEST_PART or len(name) > LONGEST_PATH:
        raise ValueError(
            f"the name {quoted(name)} is too long ({longest} bytes, at most {LONGEST_PART}); use "
            "a shorter name"
        )
    return root.joinpath(*parts)
