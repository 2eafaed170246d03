"""An adapter inside the host: its modules on casting layers, counted and offloaded through a ModelPatcher."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

from .. import checkpoint
from ..adapter import MMDiffAdapter, SubjectModules
from ..config import MMDiffConfig
from ..lora import LoRAPairs


class LoadedMMDiff:
    """What the MMDIFF socket carries. `patcher` is how the host counts, loads and offloads the adapter's modules."""

    def __init__(self, adapter: MMDiffAdapter):
        self.adapter = adapter
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.patcher = patcher_class(
            adapter.modules, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
        )

    @property
    def config(self) -> MMDiffConfig:
        return self.adapter.config

    def get_models(self) -> list:
        """The patchers behind this output, as newer hosts ask for them."""
        return [self.patcher]

    @contextmanager
    def loaded(self) -> Iterator[tuple[SubjectModules, torch.device]]:
        """The modules on their compute device, without gradients."""
        mm.load_model_gpu(self.patcher)
        with torch.no_grad():
            yield self.adapter.modules, self.patcher.load_device


def load_mmdiff(path: Path) -> LoadedMMDiff:
    """A checkpoint from disk, ready for the host. Errors as in `checkpoint.read`."""
    return LoadedMMDiff(checkpoint.load(path, ops=comfy.ops.manual_cast))


def lora_patches(pairs: LoRAPairs, keys: Mapping[str, str]) -> dict[str, LoRAAdapter]:
    """{weight key in the model: weight patch} for the pairs named in `keys` (pair name -> weight key)."""
    return {
        key: LoRAAdapter(set(), (pairs[name].up, pairs[name].down, None, None, None, None)) for name, key in keys.items()
    }


def set_patches(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    """Weight patches that replace whole weights."""
    return {key: ("set", (tensor,)) for key, tensor in tensors.items()}


def add_patches_strictly(patcher, patches: Mapping[str, object], strength: float, what: str) -> None:
    """`add_patches`, and a ValueError that names the first weight the model does not have."""
    matched = set(patcher.add_patches(dict(patches), strength))
    if lost := sorted(set(patches) - matched):
        raise ValueError(
            f"{what} has no weight {lost[0]!r} (and {len(lost) - 1} more) that the MM-Diff adapter changes; "
            "is it the kind of model the adapter was made for?"
        )
