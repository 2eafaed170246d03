"""ComfyUI's encoders and UNet, called so that gradients come through. The weights are the host's own; only the walk is ours.

The host's CLIP layers add in place, which autograd refuses; here the same modules are called without that.

Shapes   B batch · T text tokens · L patches with CLS · W width · C CLS width
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attention import attend


def walk(layers: nn.ModuleList, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """States before the first and after every layer of a CLIP transformer."""
    states = [x]
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
    model = encoder.vision_model
    states = walk(model.encoder.layers, model.pre_layrnorm(model.embeddings(pixels)))
    return encoder.visual_projection(model.post_layernorm(states[-1][:, 0])), states[-2]
