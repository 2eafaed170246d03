"""ComfyUI's models as the frozen base of a training run: the `Bridge` of `training.bridge`.

The trainer owns these models: LoRA acts through the modules' own forward, gradient checkpointing
through the blocks' own forward. Not for models that a graph is using.

Shapes   B batch · L text columns (77) · S subjects · D context width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from comfy.model_base import ModelType
from torch import Tensor, nn

from ...bases import Slot, TransformerBlock
from ...references.pixels import normalise
from ...training.bridge import Conditioning, Fuse, Linear, Prediction, SlotCall
from ...training.describing import noun_states, told_example
from ...training.example import Example
from ...training.trainable import TrainableAdapter
from ..nouns import MARKER, find_nouns
from .base import BaseModels
from .encoders import VisionCLS, text_states
from .latents import LatentEncoder
from .lora_hooks import LoRAHooks
from .unet_call import recomputed, slot_options, training_options

PREDICTIONS = {ModelType.EPS: "eps", ModelType.V_PREDICTION: "v"}

Span = tuple[int, int]


class Tokens(NamedTuple):
    """A caption for each encoder: its token ids, and the column of each noun."""

    ids: dict[str, list[int]]
    columns: dict[str, list[int]]


class HostBridge:
    """A MODEL, CLIP, CLIP_VISION and VAE, frozen, with the adapter's LoRA hooked in."""

    def __init__(
        self,
        models: BaseModels,
        adapter: TrainableAdapter,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.base = models.model.model
        if self.base.model_type not in PREDICTIONS:
            raise ValueError(
                f"the base predicts {self.base.model_type.name}; MM-Diff is trained on eps and v "
                "models"
            )
        self.prediction_type = PREDICTIONS[self.base.model_type]
        self.device = torch.device(device)
        self.unet = self.base.diffusion_model.to(self.device, dtype).requires_grad_(False)
        self.clip, self.vae, self.texts = models.clip, models.vae, {}
        self.encoder = LatentEncoder(self.base, self.vae)
        for name in adapter.config.encoders:
            encoder = getattr(models.clip.cond_stage_model, f"clip_{name}")
            self.texts[name] = encoder.to(self.device).requires_grad_(False)
        image_encoder = models.clip_vision.model.to(self.device).requires_grad_(False)
        self.image_encoder = VisionCLS(image_encoder)
        self.adapter = adapter
        sigmas = self.base.model_sampling.sigmas.double()
        self.alphas = (1 / (1 + sigmas**2)).float().to(self.device)
        self.compute = torch.float32  # of everything outside the UNet
        self.lora = LoRAHooks(self.unet, self.texts, adapter)
        self._tokens = lru_cache(maxsize=100_000)(self._read)  # its own, gone with the bridge

    @property
    def strength(self) -> float:
        """0 or 1: whether the adapter's LoRA acts."""
        return self.lora.strength

    @strength.setter
    def strength(self, strength: float) -> None:
        self.lora.strength = strength

    def close(self) -> None:
        """Remove the LoRA from the models."""
        self.lora.remove()

    # ------------------------------------------------------------ images
    def latents(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels)

    def vision(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tuned = self.adapter.vision_weights()
        cls, patches = self.image_encoder.tuned(normalise(pixels.to(self.compute)), tuned)
        return cls.to(self.compute), patches.to(self.compute)

    # ------------------------------------------------------------ captions
    def conditioning(self, batch: Sequence[Example], fuse: Fuse | None) -> Conditioning:
        read = [self._tokens(example.caption, example.spans) for example in batch]
        states, pooled = [], None
        for encoder, model in self.texts.items():
            ids = torch.tensor([tokens.ids[encoder] for tokens in read], device=self.device)
            columns = [tokens.columns[encoder] for tokens in read]
            embeds = model.transformer.get_input_embeddings()(ids, out_dtype=self.compute)
            if fuse is not None and any(columns):
                where = self._positions(columns)
                embeds = embeds.index_put(where, fuse(encoder, embeds[where]).to(embeds))
            last, penultimate = text_states(model.transformer, embeds)
            states.append(last if model.layer == "last" else penultimate)
            ends = (ids == model.special_tokens["end"]).int().argmax(1)
            rows = torch.arange(len(ids), device=self.device)
            pooled = model.transformer.text_projection(last[rows, ends])
        nouns = self._padded([tokens.columns[next(iter(self.texts))] for tokens in read])
        return Conditioning(torch.cat(states, -1), self._vector(pooled, batch[0].size), nouns)

    @torch.no_grad()
    def described(self, batch: Sequence[Example]) -> Tensor:
        told = [told_example(example) for example in batch]
        strength, self.strength = self.strength, 0.0
        try:
            text = self.conditioning(told, None)
        finally:
            self.strength = strength
        return noun_states(text.context, text.nouns)

    def _positions(self, columns: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Example and column of every noun, in reading order."""
        examples = [b for b, own in enumerate(columns) for _ in own]
        flat = [column for own in columns for column in own]
        return torch.tensor(examples, device=self.device), torch.tensor(flat, device=self.device)

    def _padded(self, columns: Sequence[Sequence[int]]) -> Tensor:
        """Columns of every noun [B S], with zeros where there is none."""
        most = max(1, *map(len, columns))
        padded = [[*own, *[0] * (most - len(own))] for own in columns]
        return torch.tensor(padded, device=self.device)

    def _vector(self, pooled: Tensor, size: tuple[int, int]) -> Tensor | None:
        if not self.base.adm_channels:
            return None
        height, width = size
        return self.base.encode_adm(
            pooled_output=pooled,
            height=height,
            width=width,
            crop_h=0,
            crop_w=0,
            target_height=height,
            target_width=width,
        )

    def _read(self, caption: str, spans: tuple[Span, ...]) -> Tokens:
        """Tokens and nouns, by the search that inference uses for a prompt."""
        marked, at = "", 0
        for _, end in spans:
            marked, at = marked + caption[at:end] + MARKER, end
        marked = (marked + caption[at:]).replace("(", r"\(").replace(")", r"\)")
        clean, nouns = find_nouns(self.clip.tokenize, marked)
        chunks = self.clip.tokenize(clean)
        tokens = Tokens({}, {encoder: [] for encoder in self.texts})
        for encoder in self.texts:
            tokens.ids[encoder] = [entry[0] for entry in chunks[encoder][0]]
        for noun in nouns:
            if any(chunk for chunk, _ in noun.places.values()):
                raise ValueError(
                    f"the noun {noun.word!r} stands beyond the first 75 tokens of the caption "
                    f"{caption[:60]!r}...; shorten it"
                )
            for encoder, (_, column) in noun.places.items():
                tokens.columns[encoder].append(column)
        return tokens

    # ------------------------------------------------------------ the UNet
    def projections(self, block: TransformerBlock) -> tuple[Linear, Linear]:
        attention = self.unet.get_submodule(block.path).attn2
        return _plain(attention.to_k), _plain(attention.to_v)

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        context: Tensor,
        vector: Tensor | None,
        slots: Mapping[Slot, SlotCall],
        checkpointing: bool = False,
        self_slots: Mapping[Slot, SlotCall] = MappingProxyType({}),
    ) -> Prediction:
        measured: list[Tensor] = []
        options = {**slot_options(slots, measured, self_slots), **training_options(self.device)}
        dtype = next(self.unet.parameters()).dtype
        with recomputed(self.unet) if checkpointing else nullcontext():
            out = self.unet(
                noisy.to(dtype),
                timesteps.to(self.compute),
                context=context.to(dtype),
                y=vector,
                transformer_options=options,
            )
        return Prediction(out.to(self.compute), measured)


def _plain(linear: nn.Linear) -> Linear:
    """The layer without hooks, in the type of its input."""

    def call(x: Tensor) -> Tensor:
        bias = None if linear.bias is None else linear.bias.to(x)
        return F.linear(x, linear.weight.to(x), bias)

    return call
