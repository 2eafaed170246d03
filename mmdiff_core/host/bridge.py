"""ComfyUI's models as the frozen base of a training run: the `Bridge` that `training.task` works against.

The trainer owns these models: LoRA acts through the modules' own forward, gradient checkpointing through the blocks' own forward. Not for
models that a graph is using.

Shapes   B batch · T text columns (77) · S subjects · D context width
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_base import ModelType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..bases import SELF_PROJECTIONS, Slot, TransformerBlock
from ..method.attention import attend_by_products
from ..method.lora import LowRank
from ..references.pixels import normalise
from ..training.task import SlotCall
from ..training.trainable import DOT, TrainableAdapter
from .differentiable import text_states, vision_cls, vision_walk
from .text import MARKER, find_nouns

MEASURES = "mmdiff_measures"
MERGED = 2 ** 16        # values of a matrix up to which its LoRA is added into it for a step: cheaper than beside it
PREDICTIONS = {ModelType.EPS: "eps", ModelType.V_PREDICTION: "v"}


LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
BEHIND = ("visual_projection.", "vision_model.post_layernorm.")      # what comes after the last layer


class VisionCLS(nn.Module):
    """`vision_cls` as a module, so that some of its weights can be exchanged for a call."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, first: int | None) -> Tensor:
        """A state [B L W] before layer `first`; with None, pixels [B 3 S S]."""
        return vision_cls(self.encoder, vision_walk(self.encoder, x)[-1]) if first is None else vision_cls(self.encoder, x, first)


def first_tuned(keys: Iterable[str], layers: int) -> int | None:
    """The first layer that has one of these weights, `layers` when all stand behind the last; None when one stands before the first."""
    found = [layers]
    for key in keys:
        layer = LAYER.match(key)
        if not layer and not key.startswith(BEHIND):
            return None
        found += [int(layer[1])] if layer else []
    return min(found)


class HostBridge:
    """A MODEL, CLIP, CLIP_VISION and VAE, frozen, with the adapter's LoRA hooked in."""

    def __init__(self, model, clip, clip_vision, vae, adapter: TrainableAdapter, device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32):
        self.base = model.model
        if self.base.model_type not in PREDICTIONS:
            raise ValueError(f"the base predicts {self.base.model_type.name}; MM-Diff is trained on eps and v models")
        self.prediction_type = PREDICTIONS[self.base.model_type]
        self.device = torch.device(device)
        self.unet = self.base.diffusion_model.to(self.device, dtype).requires_grad_(False)
        self.clip, self.vae = clip, vae
        self.texts = {e: getattr(clip.cond_stage_model, f"clip_{e}") for e in adapter.config.encoders}
        for encoder in self.texts.values():
            encoder.to(self.device).requires_grad_(False)
        self.image_encoder = VisionCLS(clip_vision.model.to(self.device).requires_grad_(False))
        self.adapter = adapter
        self.alphas = (1 / (1 + self.base.model_sampling.sigmas.double() ** 2)).float().to(self.device)
        self.strength = 1.0
        self.compute = torch.float32        # of everything outside the UNet
        self.handles: list = []
        self.merged: list[nn.Module] = []
        self._hook_unet()
        self._hook_texts()

    # ------------------------------------------------------------ LoRA
    def _hook(self, module: nn.Module, parameters: nn.ParameterDict, stem: str) -> None:
        down, up = (f"{stem.replace('.', DOT)}{DOT}{part}" for part in ("down", "up"))

        def add(_module, args, out):
            return out if self.strength == 0 else out + LowRank(parameters[down], parameters[up])(args[0]).to(out)

        def merged(x: Tensor) -> Tensor:
            if self.strength == 0:
                return type(module).forward(module, x)
            weight = module.weight + LowRank(parameters[down], parameters[up]).delta(module.weight)
            return F.linear(x, weight.to(x), None if module.bias is None else module.bias.to(x))

        if module.weight.numel() > MERGED:
            self.handles.append(module.register_forward_hook(add))
        else:
            module.forward = merged
            self.merged.append(module)

    def _hook_unet(self) -> None:
        for block in self.adapter.config.base.blocks:
            for attention in ("attn1", "attn2"):
                for projection in SELF_PROJECTIONS:
                    path = f"{block.path}.{attention}.{projection}"
                    self._hook(self.unet.get_submodule(f"{path}.0" if projection == "to_out" else path), self.adapter.unet, path)

    def _hook_texts(self) -> None:
        stems = [k.removesuffix(f"{DOT}down").replace(DOT, ".") for k in self.adapter.text if k.endswith(f"{DOT}down")]
        for stem in stems:
            encoder, rest = stem.split(".", 1)
            module = self.texts[encoder].transformer.text_model.encoder.get_submodule(rest)
            self._hook(module, self.adapter.text, stem)

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()
        for module in self.merged:
            del module.forward

    # ------------------------------------------------------------ what the task asks for
    def latents(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            first_stage = self.vae.first_stage_model.to(pixels.device)
            weight = next(first_stage.parameters())
            encoded = first_stage.encode(self.vae.process_input(pixels).to(weight.dtype)).to(self.compute)
            return self.base.process_latent_in(encoded)

    def vision(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pixels, tuned = normalise(pixels.to(self.compute)), self.adapter.vision_weights()
        encoder = self.image_encoder.encoder
        with torch.no_grad():
            states = vision_walk(encoder, pixels)
        # the tuned encoder is the untouched one up to its first tuned layer
        first = first_tuned(tuned, len(states) - 1)
        begin = pixels if first is None else states[first]
        cls = torch.func.functional_call(self.image_encoder, {f"encoder.{k}": v for k, v in tuned.items()}, (begin, first))
        return cls.to(self.compute), states[-2].to(self.compute)

    def projections(self, block: TransformerBlock) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        attn = self.unet.get_submodule(block.path).attn2
        return tuple(lambda x, m=m: F.linear(x, m.weight.to(x), None if m.bias is None else m.bias.to(x)) for m in (attn.to_k, attn.to_v))

    def conditioning(self, captions: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]], size: tuple[int, int],
                     fuse: Callable[[str, Tensor], Tensor] | None) -> tuple[Tensor, Tensor | None, Tensor]:
        read = [self._read(caption, tuple(map(tuple, nouns))) for caption, nouns in zip(captions, spans, strict=True)]
        most = max(1, max(len(s) for s in spans))
        states, pooled, columns = [], None, None
        for encoder, model in self.texts.items():
            ids = torch.tensor([tokens[encoder] for tokens, _ in read], device=self.device)
            places = [(b, place[encoder]) for b, (_, found) in enumerate(read) for place in found]
            embeds = model.transformer.get_input_embeddings()(ids, out_dtype=self.compute)
            if fuse is not None and places:
                where = tuple(torch.tensor(axis, device=self.device) for axis in zip(*places, strict=True))
                embeds = embeds.index_put(where, fuse(encoder, embeds[where]).to(embeds))
            last, penultimate = text_states(model.transformer, embeds)
            states.append(last if model.layer == "last" else penultimate)
            ends = (ids == model.special_tokens["end"]).int().argmax(1)
            pooled = model.transformer.text_projection(last[torch.arange(len(ids), device=self.device), ends])
            if columns is None:
                padded = [[*(p[encoder] for p in found), *[0] * (most - len(found))] for _, found in read]
                columns = torch.tensor(padded, device=self.device)
        return torch.cat(states, -1), self._vector(pooled, size), columns

    def _vector(self, pooled: Tensor, size: tuple[int, int]) -> Tensor | None:
        if not self.base.adm_channels:
            return None
        height, width = size
        return self.base.encode_adm(
            pooled_output=pooled, height=height, width=width, crop_h=0, crop_w=0, target_height=height, target_width=width
        )

    @lru_cache(maxsize=100_000)     # noqa: B019  (a bridge lives as long as its run)
    def _read(self, caption: str, spans: tuple[tuple[int, int], ...]) -> tuple[dict[str, list[int]], list[dict[str, int]]]:
        """Token ids by encoder, and each noun's column, by the same search that reads a person's prompt."""
        marked, at = "", 0
        for _, end in spans:
            marked, at = marked + caption[at:end] + MARKER, end
        marked = (marked + caption[at:]).replace("(", r"\(").replace(")", r"\)")
        clean, nouns = find_nouns(self.clip.tokenize, marked)
        chunks = self.clip.tokenize(clean)
        tokens = {encoder: [entry[0] for entry in chunks[encoder][0]] for encoder in self.texts}
        if late := [n.word for n in nouns if any(chunk for chunk, _ in n.places.values())]:
            raise ValueError(f"the noun {late[0]!r} stands beyond the first 75 tokens of the caption {caption[:60]!r}...; shorten it")
        return tokens, [{encoder: place for encoder, (_, place) in noun.places.items()} for noun in nouns]

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor | None, slots: Mapping[Slot, SlotCall],
                checkpointing: bool = False) -> tuple[Tensor, list[tuple[Slot, Tensor]]]:
        measures: list[tuple[Slot, Tensor]] = []
        patches = {slot: _patch(slot, call) for slot, call in slots.items()}
        options = {"patches_replace": {"attn2": patches}, MEASURES: measures, **training_options(self.device)}
        blocks = [m for m in self.unet.modules() if isinstance(m, BasicTransformerBlock)] if checkpointing else []
        dtype = next(self.unet.parameters()).dtype
        for block in blocks:
            block.forward = _checkpointed(type(block).forward.__get__(block))
        try:
            out = self.unet(noisy.to(dtype), timesteps.to(self.compute), context=context.to(dtype), y=vector, transformer_options=options)
        finally:
            for block in blocks:
                del block.forward
        return out.to(self.compute), measures


def _patch(slot: Slot, call: SlotCall) -> Callable:
    def patch(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        out, measure = call.call(q, k, v, extra_options["n_heads"], tuple(extra_options["activations_shape"][-2:]))
        if measure is not None:
            extra_options[MEASURES].append((slot, measure))
        return out

    return patch


def training_options(device: torch.device | str) -> dict:
    """transformer_options of a training step: on a CPU the host's attention is exchanged for one that is faster backwards."""
    return {"optimized_attention_override": _by_products} if torch.device(device).type == "cpu" else {}


def _by_products(attention: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options) -> Tensor:
    return attend_by_products(q, k, v, heads) if mask is None else attention(q, k, v, heads, mask=mask, **options)


def _checkpointed(forward: Callable) -> Callable:
    """A block's forward, recomputed in the backward pass under the options it was first called with.

    The host's own checkpointing reads `transformer_options` again while recomputing, when they name another block already; here
    they are copied at the call, and what the slots measure leaves through the return value.
    """
    def run(x: Tensor, context: Tensor, options: dict) -> tuple:
        local: list[tuple[Slot, Tensor]] = []
        out = forward(x, context=context, transformer_options={**options, MEASURES: local})
        return out, [slot for slot, _ in local], *(measure for _, measure in local)

    def call(x: Tensor, context: Tensor | None = None, transformer_options: dict | None = None) -> Tensor:
        options = dict(transformer_options or {})
        out, slots, *found = checkpoint(run, x, context, options, use_reentrant=False)
        options[MEASURES].extend(zip(slots, found, strict=True))
        return out

    return call
