"""ComfyUI's encoders and UNet, called so that gradients come through. The weights are the host's own; only the walk is ours.

The host's CLIP layers add in place, which autograd refuses; here the same modules are called without that.

Shapes   B batch · T text tokens · L patches with CLS · W width · C CLS width
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..method.attention import attention_on


def walk(layers: nn.ModuleList, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """States before the first and after every layer of a CLIP transformer."""
    states, attend = [x], attention_on(x.device)
    for layer in layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, attend)
        x = x + layer.mlp(layer.layer_norm2(x))
        states.append(x)
    return states


def text_states(transformer: nn.Module, embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Word embeddings [B T W] -> last (normed) and penultimate states of the host's CLIPTextModel."""
    model = transformer.text_model
    x = embeds + model.embeddings.position_embedding.weight[: embeds.shape[1]].to(embeds)
    causal = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype, device=x.device).triu_(1)
    states = walk(model.encoder.layers, x, causal)
    return model.final_layer_norm(states[-1]), states[-2]


def vision_states(encoder: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised pixels [B 3 S S] -> projected CLS [B C] and penultimate states [B L W] of the host's CLIPVisionModelProjection."""
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
