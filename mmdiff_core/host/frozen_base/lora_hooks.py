"""The adapter's LoRA in the frozen base's own modules."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...bases import SELF_PROJECTIONS
from ...training.trainable import TrainableAdapter, live_pair, pair_stems

# values of a matrix up to which its LoRA is added into it for a step: cheaper than beside it
MERGED = 2**16


class LoRAHooks:
    """LoRA pairs that act in the forward of the modules they belong to.

    strength  0 or 1: whether they act
    """

    def __init__(self, unet: nn.Module, texts: dict[str, nn.Module], adapter: TrainableAdapter):
        """Hook the pairs into the UNet and into the text encoders {encoder: module}."""
        self.strength = 1.0
        self._handles: list = []
        self._merged: list[nn.Module] = []
        for block in adapter.config.base.blocks:
            for attention in ("attn1", "attn2"):
                for projection in SELF_PROJECTIONS:
                    path = f"{block.path}.{attention}.{projection}"
                    own = f"{path}.0" if projection == "to_out" else path
                    self._hook(unet.get_submodule(own), adapter.unet, path)
        for stem in pair_stems(adapter.text):
            encoder, path = stem.split(".", 1)
            layers = texts[encoder].transformer.text_model.encoder
            self._hook(layers.get_submodule(path), adapter.text, stem)

    def _hook(self, module: nn.Module, parameters: nn.ParameterDict, stem: str) -> None:
        def add(_module, args, out):
            if self.strength == 0:
                return out
            return out + live_pair(parameters, stem)(args[0]).to(out)

        def merged(x: Tensor) -> Tensor:
            if self.strength == 0:
                return type(module).forward(module, x)
            weight = module.weight + live_pair(parameters, stem).delta(module.weight)
            return F.linear(x, weight.to(x), None if module.bias is None else module.bias.to(x))

        if module.weight.numel() > MERGED:
            self._handles.append(module.register_forward_hook(add))
        else:
            module.forward = merged
            self._merged.append(module)

    def remove(self) -> None:
        """Leave the modules as they were."""
        for handle in self._handles:
            handle.remove()
        for module in self._merged:
            del module.forward
