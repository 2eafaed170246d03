"""Another pack beside ours: a checkout of ComfyUI_IPAdapter_plus."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmark_host import BenchmarkError
from torch import Tensor, nn

from .setting import TOKENS, Scale


class PeerAdapter(nn.Module):
    """K and V layers under the names that ComfyUI_IPAdapter_plus looks for, with random weights."""

    def __init__(self, scale: Scale, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.ip_layers = nn.Module()
        self.ip_layers.to_kvs = nn.ModuleDict()
        for number, block in enumerate(scale.config.base.blocks):
            for part in ("k", "v"):
                linear = nn.Linear(
                    scale.context, block.width, bias=False, dtype=dtype, device=device
                )
                self.ip_layers.to_kvs[f"{2 * number + 1}_to_{part}_ip"] = linear.requires_grad_(
                    False
                )

    def get_multigpu_clone(self, device: torch.device) -> PeerAdapter:
        return self


def peer_layers(
    model, scale: Scale, seed: int, mask: Tensor | None
) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """(layer, arguments) of one application.

    Its middle block has the number 1, which the host never asks for.
    """
    device, dtype = model.load_device, model.model.get_dtype()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, TOKENS, scale.context, generator=generator).to(device, dtype)
    sampling = model.get_model_object("model_sampling")
    shared = {
        "ipadapter": PeerAdapter(scale, dtype, device),
        "weight": 0.8,
        "cond": tokens[:1],
        "cond_alt": None,
        "uncond": tokens[1:],
        "embeds_scaling": "V only",
        "weight_type": "linear",
        "mask": None if mask is None else mask[None].to(device, dtype),
        "unfold_batch": False,
        "sigma_start": sampling.percent_to_sigma(0.0),
        "sigma_end": sampling.percent_to_sigma(1.0),
    }
    for number, block in enumerate(scale.config.base.blocks):
        key = ("middle", 1, block.index) if block.block == "middle" else block.slot
        yield key, {**shared, "module_key": str(2 * number + 1)}


def read_peer(folder: Path) -> types.ModuleType:
    """The other pack's attention, without its nodes."""
    if not (folder / "CrossAttentionPatch.py").is_file():
        raise BenchmarkError(
            f"{folder} has no CrossAttentionPatch.py; "
            "--pack is a checkout of ComfyUI_IPAdapter_plus"
        )
    package = types.ModuleType("benchmark_peer")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    try:
        return importlib.import_module(f"{package.__name__}.CrossAttentionPatch")
    except ImportError as error:
        raise BenchmarkError(f"the pack in {folder} cannot be imported: {error}") from error
