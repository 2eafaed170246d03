"""An adapter inside the host: its modules on casting layers, counted and offloaded through a
ModelPatcher."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ref

import comfy.clip_vision
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor, nn

from ..checkpoints import checkpoint
from ..config import MMDiffConfig
from ..method.adapter import MMDiffAdapter, SubjectModules
from ..method.lora import LoRAPairs


class BaseModels(NamedTuple):
    """A base model as ComfyUI holds it: MODEL, CLIP, CLIP_VISION and VAE."""

    model: comfy.model_patcher.ModelPatcher
    clip: comfy.sd.CLIP
    clip_vision: comfy.clip_vision.ClipVisionModel
    vae: comfy.sd.VAE


def patcher_of(module: nn.Module, dynamic: bool = True) -> comfy.model_patcher.ModelPatcher:
    """How the host counts, loads and offloads a module. Newer hosts have a class of their own for
    dynamic VRAM and choose it when they start; `dynamic` = False leaves that out."""
    plain = comfy.model_patcher.ModelPatcher
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", plain) if dynamic else plain
    return kind(
        module, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )


class Encodings:
    """The last encodings made with an adapter, found by the very objects that made them, by images
    and by settings."""

    def __init__(self, keep: int = 16):
        self._kept: OrderedDict[tuple, tuple[list[ref | None], Any]] = OrderedDict()
        self._keep = keep

    def remember(
        self,
        makers: Sequence[object | None],
        images: Sequence[Tensor | None],
        settings: tuple,
        make: Callable[[], Any],
    ) -> Any:
        """What `make` gave for the same before, or gives now. `makers` are compared as objects and
        not kept alive, `images` by every pixel; beyond `keep` the one that was not asked for
        longest goes."""
        digest = hashlib.sha256()
        for image in images:
            digest.update(
                b"none" if image is None else f"{image.dtype}{tuple(image.shape)}".encode()
            )
            digest.update(b"" if image is None else image.cpu().contiguous().numpy().tobytes())
        key = tuple(id(maker) for maker in makers), settings, digest.digest()
        held, encoding = self._kept.pop(key, (None, None))
        # an id may be taken again
        if held is None or any(
            maker is not (r and r()) for maker, r in zip(makers, held, strict=True)
        ):
            held, encoding = [None if maker is None else ref(maker) for maker in makers], make()
        self._kept[key] = held, encoding
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)
        return encoding


class Readers(NamedTuple):
    """What reads reference images: CLIP_VISION and MMDIFF_FACES; None where there is none."""

    clip_vision: comfy.clip_vision.ClipVisionModel | None = None
    faces: Any = None


NO_READERS = Readers()


class LoadedMMDiff:
    """What the MMDIFF socket carries. `patcher` is how the host counts, loads and offloads the
    adapter's modules; `readers` came with the adapter from one loader."""

    def __init__(self, adapter: MMDiffAdapter, readers: Readers = NO_READERS):
        self.adapter = adapter
        self.readers = readers
        self.encodings = Encodings()
        self.patcher = patcher_of(adapter.modules)

    @property
    def config(self) -> MMDiffConfig:
        return self.adapter.config

    def get_models(self) -> list:
        """The patchers behind this output, as newer hosts ask for them."""
        return [self.patcher]

    def readers_of(self, clip_vision: object | None, faces: object | None) -> Readers:
        """Those that a node was given; for one that is None, the loader's own. ValueError where
        there is no image encoder at all."""
        clip_vision = self.readers.clip_vision if clip_vision is None else clip_vision
        if clip_vision is None:
            raise ValueError(
                "clip_vision is not connected; connect Load CLIP Vision, or take mmdiff from Load "
                "MM-Diff Models"
            )
        return Readers(clip_vision, self.readers.faces if faces is None else faces)

    @contextmanager
    def loaded(self) -> Iterator[tuple[SubjectModules, torch.device]]:
        """The modules on their compute device, without gradients."""
        mm.load_model_gpu(self.patcher)
        with torch.no_grad():
            yield self.adapter.modules, self.patcher.load_device


def load_mmdiff(path: Path, readers: Readers = NO_READERS) -> LoadedMMDiff:
    """A checkpoint from disk, ready for the host. Errors as in `checkpoint.read`."""
    return LoadedMMDiff(checkpoint.load(path, ops=comfy.ops.manual_cast), readers)


def lora_patches(pairs: LoRAPairs, keys: Mapping[str, str]) -> dict[str, LoRAAdapter]:
    """{weight key in the model: weight patch} for the pairs named in `keys` (pair name -> weight
    key)."""
    return {
        key: LoRAAdapter(set(), (pairs[name].up, pairs[name].down, None, None, None, None))
        for name, key in keys.items()
    }


def set_patches(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    """Weight patches that replace whole weights."""
    return {key: ("set", (tensor,)) for key, tensor in tensors.items()}


def add_patches_strictly(
    patcher, patches: Mapping[str, object], strength: float, what: str
) -> None:
    """`add_patches`, and a ValueError that names the first weight the model does not have."""
    matched = set(patcher.add_patches(dict(patches), strength))
    if lost := sorted(set(patches) - matched):
        raise ValueError(
            f"{what} has no weight {lost[0]!r} (and {len(lost) - 1} more) that the MM-Diff adapter "
            "changes; is it the base model that the adapter was trained for?"
        )
