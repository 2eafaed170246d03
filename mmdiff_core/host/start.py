"""Finding ComfyUI from outside of it: for the commands that train and measure."""
from __future__ import annotations

import os
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def find_comfyui() -> Path:
    """$COMFYUI_PATH, or the ComfyUI whose custom_nodes this pack lies in, or the one `dev.py host` unpacked."""
    places = [os.environ.get("COMFYUI_PATH"), PACK.parent.parent, PACK / ".host" / "ComfyUI"]
    for place in places:
        if place and (Path(place) / "comfy" / "sd.py").is_file():
            return Path(place).resolve()
    raise FileNotFoundError(
        "no ComfyUI found: put this pack into its custom_nodes, or set COMFYUI_PATH to its folder, or run: python dev.py host"
    )


def use_comfyui(cpu: bool | None = None) -> None:
    """Make `import comfy` work in this process. `cpu` None = use a GPU where there is one."""
    sys.path.insert(0, str(find_comfyui()))
    import comfy.options
    comfy.options.enable_args_parsing(False)
    import torch
    from comfy.cli_args import args
    args.cpu = not torch.cuda.is_available() if cpu is None else cpu
    args.use_pytorch_cross_attention = not args.cpu      # on a CPU torch's fused attention is slow in the backward pass
