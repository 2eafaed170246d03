"""Find ComfyUI from outside of it, for the commands; nothing of it is imported before that."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def find_comfyui() -> Path:
    """ComfyUI's folder. FileNotFoundError says how to name it.

    $COMFYUI_PATH, or the ComfyUI whose custom_nodes this pack lies in, or the one that `dev.py
    host` unpacked.
    """
    for folder in (os.environ.get("COMFYUI_PATH"), PACK.parent.parent, PACK / ".host" / "ComfyUI"):
        if folder and (Path(folder) / "comfy" / "sd.py").is_file():
            return Path(folder).resolve()
    raise FileNotFoundError(
        "no ComfyUI found: put this pack into its custom_nodes, or set COMFYUI_PATH to its folder, "
        "or run: python dev.py host"
    )


def use_comfyui(cpu: bool | None = None) -> None:
    """Make `import comfy` work in this process; call it before anything imports comfy.

    cpu  None = use a GPU where there is one
    """
    sys.path.insert(0, str(find_comfyui()))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available() if cpu is None else cpu
    # on a CPU torch's fused attention is slow in the backward pass
    args.use_pytorch_cross_attention = not args.cpu


def use_model_folders(extra: Sequence[Path]) -> None:
    """Register the folders that the server would know, after `use_comfyui`.

    extra  files in the format of extra_model_paths.yaml, in addition to ComfyUI's own
    """
    from utils.extra_config import load_extra_path_config

    from . import files

    for path in (find_comfyui() / "extra_model_paths.yaml", *extra):
        if path.is_file():
            load_extra_path_config(str(path))
    files.register_folders()
