"""Other packs beside ours: checkouts of ComfyUI_IPAdapter_plus, ComfyUI_InstantID, PuLID_ComfyUI.

Measured is what each of them does at every step in the UNet, by its own code, with the number of
tokens of its released weights. InstantID's ControlNet is not part of it.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmark_host import BenchmarkError
from torch import Tensor, nn

from .setting import TOKENS, Scale


@dataclass(frozen=True)
class Peer:
    """Where a pack's attention is, and what its own Apply node gives it.

    adapter     the keyword its weights go by
    tokens      of one subject
    arguments   others than all packs take
    """

    folder: str
    module: str
    attention: str
    adapter: str
    tokens: int
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.replace("ComfyUI_", "").replace("_ComfyUI", "")


IP_ADAPTER = {
    "cond_alt": None,
    "embeds_scaling": "V only",
    "weight_type": "linear",
    "unfold_batch": False,
}
PEERS = (
    Peer(
        "ComfyUI_IPAdapter_plus",
        "CrossAttentionPatch",
        "ipadapter_attention",
        "ipadapter",
        TOKENS,
        IP_ADAPTER,
    ),
    Peer("ComfyUI_InstantID", "CrossAttentionPatch", "instantid_attention", "ipadapter", 16),
    # 5 + 5 of its encoder, and the 8 zeros of fidelity 8
    Peer(
        "PuLID_ComfyUI",
        "pulid",
        "pulid_attention",
        "pulid",
        18,
        {"ortho": False, "ortho_v2": True},
    ),
)

# what a pack imports for its encoders, which are not measured
ENCODERS = {
    "insightface": (),
    "insightface.app": ("FaceAnalysis",),
    "facexlib": (),
    "facexlib.parsing": ("init_parsing_model",),
    "facexlib.utils": (),
    "facexlib.utils.face_restoration_helper": ("FaceRestoreHelper",),
    "torchvision.transforms": (),
}
OWN_ENCODERS = {
    "eva_clip": (),
    "eva_clip.constants": ("OPENAI_DATASET_MEAN", "OPENAI_DATASET_STD"),
    "encoders": ("IDEncoder",),
}


@dataclass(frozen=True, eq=False)
class LoadedPeer:
    """A pack whose attention was imported."""

    peer: Peer
    module: types.ModuleType

    @property
    def attention(self):
        return getattr(self.module, self.peer.attention)


class PeerAdapter(nn.Module):
    """K and V layers under the names that these packs look for, with random weights."""

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
    peer: Peer, model, scale: Scale, seed: int, mask: Tensor | None
) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """(layer, arguments) of one application.

    Its middle block has the number 1, which the host never asks for.
    """
    device, dtype = model.load_device, model.model.get_dtype()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, peer.tokens, scale.context, generator=generator).to(device, dtype)
    sampling = model.get_model_object("model_sampling")
    shared = {
        peer.adapter: PeerAdapter(scale, dtype, device),
        "weight": 0.8,
        "cond": tokens[:1],
        "uncond": tokens[1:],
        "mask": None if mask is None else mask[None].to(device, dtype),
        "sigma_start": sampling.percent_to_sigma(0.0),
        "sigma_end": sampling.percent_to_sigma(1.0),
        **peer.arguments,
    }
    for number, block in enumerate(scale.config.base.blocks):
        key = ("middle", 1, block.index) if block.block == "middle" else block.slot
        yield key, {**shared, "module_key": str(2 * number + 1)}


def find_peers(packs: Path | None, pack: Path | None) -> tuple[list[LoadedPeer], list[str]]:
    """The packs that are in the folder `packs`, and a sentence for each that is not; `pack` is
    ComfyUI_IPAdapter_plus wherever it lies."""
    found, absent = [], []
    for peer in PEERS:
        folder = None if packs is None else packs / peer.folder
        if pack is not None and peer is PEERS[0]:
            folder = pack
        if folder is None or not folder.is_dir():
            where = "name its folder with --packs" if packs is None else f"no {folder}"
            absent.append(f"{peer.folder} is not measured: {where}")
        else:
            found.append(read_peer(peer, folder))
    return found, absent


def read_peer(peer: Peer, folder: Path) -> LoadedPeer:
    """A pack's attention, without its nodes and encoders."""
    if not (folder / f"{peer.module}.py").is_file():
        raise BenchmarkError(f"{folder} has no {peer.module}.py; is it {peer.folder}?")
    package = types.ModuleType(f"benchmark_{peer.name}")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    stand_in(ENCODERS)
    if peer.module == "pulid":
        own = {f"{package.__name__}.{name}": has for name, has in OWN_ENCODERS.items()}
        stand_in(own)
    try:
        return LoadedPeer(peer, importlib.import_module(f"{package.__name__}.{peer.module}"))
    except ImportError as error:
        raise BenchmarkError(f"the pack in {folder} cannot be imported: {error}") from error


def stand_in(modules: dict[str, tuple[str, ...]]) -> None:
    """Modules with these names and nothing in them, where there are none."""
    for name, names in modules.items():
        try:
            importlib.import_module(name)
        except ImportError:
            module = sys.modules[name] = types.ModuleType(name)
            module.__path__ = []
            for attribute in names:
                setattr(module, attribute, object)
