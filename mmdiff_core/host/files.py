"""Model folders: where checkpoints and face models live, what is there, and what to say when it is not."""
from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..checkpoint import is_official_folder

CHECKPOINTS = "mmdiff"
FACES = "insightface"
SUFFIX = ".safetensors"


def register_folders() -> None:
    """Add models/mmdiff and models/insightface to what ComfyUI knows; entries of extra_model_paths.yaml stay."""
    for name in (CHECKPOINTS, FACES):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name), is_default=True)
    paths, _ = folder_paths.folder_names_and_paths[CHECKPOINTS]
    folder_paths.folder_names_and_paths[CHECKPOINTS] = (paths, {SUFFIX})


def roots(name: str) -> list[Path]:
    return [Path(p) for p in folder_paths.get_folder_paths(name)]


def list_checkpoints() -> list[str]:
    """Names for the combo: our single files, and folders that hold the released .bin files."""
    singles = folder_paths.get_filename_list(CHECKPOINTS)
    folders = [p.name for root in roots(CHECKPOINTS) if root.is_dir() for p in sorted(root.iterdir()) if is_official_folder(p)]
    return sorted({*singles, *folders})


def find_checkpoint(name: str) -> Path:
    """Path of a combo entry. FileNotFoundError names the folders searched and what was found there."""
    for root in roots(CHECKPOINTS):
        path = root / name
        if path.is_file() or is_official_folder(path):
            return path
    raise FileNotFoundError(
        f"MM-Diff checkpoint {name!r} not found. Searched: {', '.join(map(str, roots(CHECKPOINTS)))}; found there: "
        f"{list_checkpoints() or 'nothing'}. Put the released folder (three .bin files) or a .safetensors of ours there."
    )


def target_path(name: str) -> Path:
    """Where a converted checkpoint goes: inside the first mmdiff folder. ValueError for a name that leads elsewhere."""
    root = roots(CHECKPOINTS)[0].resolve()
    path = (root / name).resolve()
    if root not in path.parents:
        raise ValueError(f"the file name {name!r} leads out of {root}; give a plain name")
    return path
