"""The small world as ordinary ComfyUI objects: MODEL, CLIP, VAE and CLIP_VISION, from the weights
in the pack or fresh."""
from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..small_world import references, sizes
from ..small_world.examples import enlarge
from ..small_world.scenes import Identity, reference
from .models import NO_READERS, BaseModels, LoadedMMDiff, Readers, load_mmdiff, patcher_of

Tensors = Mapping[str, Tensor]
WEIGHTS = Path(__file__).resolve().parents[1] / "small_world" / "weights"
FILES = ("unet", "text", "vision")


class SmallWorldLatent(comfy.latent_formats.LatentFormat):
    """The dots themselves, folded 2 x 2 into channels."""

    latent_channels = sizes.CHANNELS
    scale_factor = sizes.LATENT_SCALE

    def __init__(self):
        # previews: the mean of the folded dots
        each = 1 / (sizes.FOLD ** 2 * sizes.LATENT_SCALE)
        rows = (each * torch.eye(3)).repeat_interleave(sizes.FOLD ** 2, 0)
        self.latent_rgb_factors = rows.tolist()


class SmallWorld(comfy.supported_models.SD15):
    """ComfyUI's SD1.5 family with the small UNet; predicts v."""

    latent_format = SmallWorldLatent

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self):
        return False        # the host takes more than four input channels for a sign of inpainting


class Dots(nn.Module):
    """Pixels [B 3 H W] in -1..1 <-> latents [B 12 H/8 W/8]: every dot of 4 x 4 px averaged, 2 x 2
    dots folded. No weights."""

    def __init__(self):
        super().__init__()
        self.pixel_space_vae = nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def encode(self, pixels: Tensor, *_args, **_kwargs) -> Tensor:
        return F.pixel_unshuffle(F.avg_pool2d(pixels, sizes.DOT), sizes.FOLD)

    def decode(self, samples: Tensor, *_args, **_kwargs) -> Tensor:
        return F.interpolate(F.pixel_shuffle(samples, sizes.FOLD), scale_factor=sizes.DOT,
                             mode="nearest")


def read(folder: Path, name: str) -> dict[str, Tensor]:
    """One of the base's files, or all its parts. FileNotFoundError says where it should be."""
    return {key: tensor for path in find(folder, name) for key, tensor in load_file(path).items()}


def find(folder: Path, name: str) -> list[Path]:
    """The file of that name, or its parts in order. FileNotFoundError when there is none."""
    paths = sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*.safetensors")])
    if not paths:
        raise FileNotFoundError(
            f"{name}.safetensors is missing in mmdiff_core/small_world/weights; the pack is "
            "incomplete, reinstall it"
        )
    return paths


def load(folder: Path = WEIGHTS) -> BaseModels:
    """The small world's models. FileNotFoundError when one of its files is missing."""
    unet = load_unet(folder)
    text, vision = (read(folder, name) for name in FILES[1:])
    return BaseModels(unet, clip(text), clip_vision(vision), vae())


def load_unet(
    folder: Path = WEIGHTS, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """MODEL alone. Newer hosts ask for it again where they need weights of their own, on another
    GPU or without dynamic VRAM: `cached_patcher_init` tells them how."""
    built = model(read(folder, "unet"), dynamic=not disable_dynamic)
    built.cached_patcher_init = (load_unet, (folder,))
    return built


def load_adapter(folder: Path = WEIGHTS, readers: Readers = NO_READERS) -> LoadedMMDiff:
    """MMDIFF: the adapter that was trained on it."""
    return load_mmdiff(find(folder, "adapter")[0], readers)


def draw_references(kind: str, first: float, second: float, pattern: str, eyes: str, accessory: str,
                    count: int = 1,
                    seed: int = 0) -> Tensor:
    """IMAGE [count 128 128 3] of an individual: a clean picture, then as people might photograph
    it. Hues in 0..1."""
    who = Identity(first % 1, second % 1, pattern, eyes, accessory)
    rng = np.random.default_rng(seed)
    shown = [references.augmented(rng, kind, who) if i else reference(kind, who)
             for i in range(count)]
    dots = torch.from_numpy(np.stack(shown)).float().movedim(-1, 1)
    return enlarge(dots).movedim(1, -1).contiguous()


def model(state: Tensors | None = None, dtype: torch.dtype = torch.float32,
          dynamic: bool = True) -> comfy.model_patcher.ModelPatcher:
    """MODEL. Without `state` the weights are fresh, for training the base; `dynamic` as in
    `patcher_of`."""
    config = {**sizes.UNET, "dtype": dtype}
    supported = SmallWorld(dict(config))
    supported.unet_config = dict(config)        # the family's extra config would set 8 heads
    supported.set_inference_dtype(dtype, None)
    built = supported.get_model({}, "", device=torch.device("cpu"))
    if state is None:
        _initialise(built.diffusion_model)
    else:
        built.diffusion_model.load_state_dict({k: v.to(dtype) for k, v in state.items()},
                                              strict=True)
    built.eval().requires_grad_(False)
    return patcher_of(built, dynamic)


def clip(state: Tensors | None = None) -> comfy.sd.CLIP:
    """CLIP with one small text encoder. `state` may hold only the trained rows of the token table
    (`token_rows`, `token_ids`)."""
    target = comfy.supported_models.SD15({}).clip_target()
    built = comfy.sd.CLIP(target, model_options={"clip_l_model_config": dict(sizes.TEXT),
                                                 "dtype": torch.float32})
    built.tokenizer.clip_l.max_length = sizes.TOKENS
    transformer = built.cond_stage_model.clip_l.transformer
    if state is None:
        _initialise(transformer)
        nn.init.normal_(transformer.get_input_embeddings().weight, std=0.02)
        nn.init.normal_(transformer.text_model.embeddings.position_embedding.weight, std=0.02)
        return built
    full = {k: v.float() for k, v in state.items() if not k.startswith("token_")}
    # words that were never trained say nothing
    table = torch.zeros(sizes.TEXT["vocab_size"], sizes.TEXT["hidden_size"])
    table[state["token_ids"].long()] = state["token_rows"].float()
    full["text_model.embeddings.token_embedding.weight"] = table
    transformer.load_state_dict(full, strict=True)
    return built


def clip_vision(state: Tensors | None = None) -> comfy.clip_vision.ClipVisionModel:
    """CLIP_VISION: a ViT of 4 x 4 dot patches on 32 x 32."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "config.json"
        path.write_text(json.dumps(sizes.VISION), encoding="utf-8")
        built = comfy.clip_vision.ClipVisionModel(str(path))
    built.model.float()
    if state is None:
        _initialise(built.model)
        embeddings = built.model.vision_model.embeddings
        for parameter in (embeddings.class_embedding, embeddings.position_embedding.weight):
            nn.init.normal_(parameter, std=0.02)
    else:
        built.model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
    return built


def vae() -> comfy.sd.VAE:
    """VAE without weights, 8 px to a latent position like every other."""
    # in float32 on a GPU too: 8 bits of a colour are more than bfloat16 holds
    built = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    built.first_stage_model = Dots().eval()
    built.patcher = comfy.model_patcher.ModelPatcher(
        built.first_stage_model, load_device=built.device, offload_device=mm.vae_offload_device()
    )
    built.downscale_ratio = built.upscale_ratio = sizes.DOT * sizes.FOLD
    built.latent_channels = sizes.CHANNELS
    return built


def _initialise(module: nn.Module) -> None:
    """torch's usual initialisation, which the host's layers leave out; layers that close a residual
    branch begin at zero."""
    for name, part in module.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_uniform_(part.weight, a=5 ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            nn.init.zeros_(part.weight)
