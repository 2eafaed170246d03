"""The ComfyUI that the benchmarks measure in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


class BenchmarkError(Exception):
    """Something the person who runs this can act on."""


def use_host(device: str) -> None:
    """ComfyUI, the pack and the tests' helpers on the path.

    The device is chosen before ComfyUI looks for one.
    """
    host = os.environ.get("COMFYUI_PATH")
    if not host or not (Path(host) / "comfy").is_dir():
        raise BenchmarkError(
            f"COMFYUI_PATH is {host!r}: no ComfyUI there. Set it to the folder that holds comfy/."
        )
    sys.path[:0] = [host, str(TESTS.parent), str(TESTS), str(TESTS / "host_nodes")]
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import torch
    from comfy.cli_args import args

    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device is cuda, but torch finds no GPU")
    args.cpu = device == "cpu"
