"""Our layout of a checkpoint: one .safetensors file with the config in its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..config import MMDiffConfig
from ..untrusted import plain
from .contents import Tensors, check, check_parts, check_table, check_values, check_whole
from .errors import CheckpointError, told_as
from .header import check_format, config_of, make_header, parts_of, trained_text
from .tensor_file import open_tensor_file, write_tensor_file


def read_single(path: Path) -> tuple[MMDiffConfig, Tensors]:
    """Our .safetensors -> config and flat tensors, checked. CheckpointError says what is wrong."""
    name = plain(path.name)
    with told_as(CheckpointError):
        file = open_tensor_file(path)
        check_format(file.header, name)
        config, parts = config_of(file.header, name), parts_of(file.header, name)
        check_table(config, file.table, name)
        if parts is None:
            check_whole(config, file.table, name, trained_text(file.header))
        else:
            check_parts(config, file.table, parts, name)
        flat = file.read()
    check_values(flat, name)
    return config, flat


def save_single(
    path: Path,
    config: MMDiffConfig,
    flat: Tensors,
    dtype: torch.dtype = torch.float16,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write our layout; the file appears under its name only when it is whole.

    CheckpointError: the tensors do not fit the config, or `dtype` cannot hold a value.
    """
    name = plain(path.name)
    check(config, flat, name)
    stored = {key: tensor.to(dtype) for key, tensor in flat.items()}
    check_values(stored, f"{name} as {dtype}".replace("torch.", ""))
    write_tensor_file(path, stored, make_header(config, flat, extra))
