"""ComfyUI's text and image encoders, called so that gradients come through.

The weights and modules are the host's own. The host's CLIP layers add in place, which autograd
refuses; here the same modules are called without that.

Shapes   B batch · T text tokens · L patches with CLS · W width · C CLS width · S image side
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...method.attention import attention_on


def walk(layers: nn.ModuleList, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """States before the first and after every layer of a CLIP transformer."""
    states, attend = [x], attention_on(x.device)
    for layer in layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, attend)
        x = x + layer.mlp(layer.layer_norm2(x))
        states.append(x)
    return states


def text_states(transformer: nn.Module, embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Word embeddings [B T W] -> last (normed) and penultimate states of CLIPTextModel."""
    model = transformer.text_model
    x = embeds + model.embeddings.position_embedding.weight[: embeds.shape[1]].to(embeds)
    length = x.shape[1]
    causal = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu_(1)
    states = walk(model.encoder.layers, x, causal)
    return model.final_layer_norm(states[-1]), states[-2]


def vision_states(encoder: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised pixels [B 3 S S] -> projected CLS [B C] and penultimate states [B L W].

    `encoder` is the host's CLIPVisionModelProjection.
    """
    states = vision_walk(encoder, pixels)
    return vision_cls(encoder, states[-1]), states[-2]


def vision_walk(encoder: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Normalised pixels [B 3 S S] -> states [B L W] before the first and after every layer."""
    model = encoder.vision_model
    return walk(model.encoder.layers, model.pre_layrnorm(model.embeddings(pixels)))


def vision_cls(encoder: nn.Module, state: Tensor, first: int | None = None) -> Tensor:
    """The last layer's state [B L W], or the state before layer `first`, -> projected CLS [B C]."""
    model = encoder.vision_model
    if first is not None:
        state = walk(model.encoder.layers[first:], state)[-1]
    return encoder.visual_projection(model.post_layernorm(state[:, 0]))


# ---------------------------------------------------------------- partly fine-tuned

LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
AFTER_LAYERS = ("visual_projection.", "vision_model.post_layernorm.")


class VisionCLS(nn.Module):
    """`vision_cls` as a module, so that some of its weights can be exchanged for a call."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, first: int | None) -> Tensor:
        """A state [B L W] before layer `first`; with None, pixels [B 3 S S]."""
        if first is None:
            return vision_cls(self.encoder, vision_walk(self.encoder, x)[-1])
        return vision_cls(self.encoder, x, first)

    def tuned(self, pixels: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B 3 S S] -> CLS of the encoder with these weights, own patches.

        The tuned encoder equals the untouched one up to its first tuned layer, so only the rest
        runs twice.
        """
        with torch.no_grad():
            states = vision_walk(self.encoder, pixels)
        first = first_tuned(weights, len(states) - 1)
        start = pixels if first is None else states[first]
        named = {f"encoder.{key}": weight for key, weight in weights.items()}
        cls = torch.func.functional_call(self, named, (start, first))
        return cls, states[-2]


def first_tuned(keys: Iterable[str], layers: int) -> int | None:
    """The first layer that has one of these weights.

    `layers` when all of them come after the last layer; None when one comes before the first.
    """
    first = layers
    for key in keys:
        layer = LAYER.match(key)
        if layer:
            first = min(first, int(layer[1]))
        elif not key.startswith(AFTER_LAYERS):
            return None
    return first
