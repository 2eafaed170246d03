"""Model folders: where checkpoints and face models live, what is there, and what to say when it is
not."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..checkpoints.checkpoint import is_official_folder

CHECKPOINTS = "mmdiff"
FACES = "insightface"
SUBJECTS = "mmdiff_subjects"
SUFFIX = ".safetensors"


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


def find_checkpoint(name: str) -> Path:
    """Path of a combo entry. FileNotFoundError names the folders searched and what was found
    there."""
    for root in roots(CHECKPOINTS):
        path = root / name
        if path.is_file() or is_official_folder(path):
            return path
    raise FileNotFoundError(
        f"MM-Diff checkpoint {name!r} not found. Searched: "
        f"{', '.join(map(str, roots(CHECKPOINTS)))}; found there: "
        f"{list_checkpoints() or 'nothing'}. Put the released folder (three .bin files) or a "
        "converted .safetensors there."
    )


def target_path(name: str) -> Path:
    """Where a converted checkpoint goes: inside the first mmdiff folder. ValueError for a name that
    leads elsewhere."""
    root = roots(CHECKPOINTS)[0].resolve()
    path = (root / name).resolve()
    if root not in path.parents:
        raise ValueError(f"the file name {name!r} points outside {root}; use a plain file name")
    return path


def list_subjects() -> list[str]:
    """Names of the saved subjects for the combo."""
    known = SUBJECTS in folder_paths.folder_names_and_paths
    return sorted(folder_paths.get_filename_list(SUBJECTS)) if known else []


def find_subject(name: str) -> Path:
    """Path of a saved subject. FileNotFoundError names the folders searched and what was found
    there."""
    for root in roots(SUBJECTS):
        path = (root / name).resolve()
        if root.resolve() in path.parents and path.is_file():
            return path
    raise FileNotFoundError(
        f"there is no saved subject {name!r}. Searched: {', '.join(map(str, roots(SUBJECTS)))}; "
        f"found there: {list_subjects() or 'nothing'}. Save one with Save MM-Diff Subject."
    )


def subject_path(name: str, overwrite: bool) -> Path:
    """Where a subject of this name goes, inside the first mmdiff_subjects folder; without
    `overwrite` a taken name gets a number. ValueError for a name that leads elsewhere."""
    root = roots(SUBJECTS)[0].resolve()
    plain = "".join(c if c not in '<>:"|?*\\' and c.isprintable() else "_" for c in name).strip()
    path = (root / f"{plain}{SUFFIX}").resolve()
    if root not in path.parents or not path.name.removesuffix(SUFFIX).strip("."):
        raise ValueError(f"the name {name!r} points outside {root}; use a plain name")
    number = 2
    while not overwrite and path.exists():
        path = path.with_name(f"{Path(plain).name}_{number}{SUFFIX}")
        number += 1
    return path
