"""The adapter as one torch module: the parts that inference runs, with gradients, and nothing of the frozen base."""
from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..checkpoints import released, shapes
from ..config import CONFIGS, MMDiffConfig
from ..method.adapter import MMDiffAdapter, SubjectModules, pair_keys
from ..method.lora import LowRank
from .config import AdapterConfig

DOT = "/"       # torch refuses dots in parameter names


def adapter_config(wanted: AdapterConfig) -> MMDiffConfig:
    """The named sizes, with the run's depth of the refiner. ValueError lists the known names."""
    if wanted.name not in CONFIGS:
        raise ValueError(f"adapter.name is {wanted.name!r}, expected one of {sorted(CONFIGS)}")
    config = CONFIGS[wanted.name]
    return config if wanted.refiner_depth is None else dataclasses.replace(config, refiner_depth=wanted.refiner_depth)


class TrainableAdapter(nn.Module):
    """Projections, refiner, fusion, LoRA pairs and the fine-tuned part of the image encoder.

    LoRA begins as nothing: down is small noise, up is zero. `vision` begins as the base weights it is given.
    """

    def __init__(self, wanted: AdapterConfig, vision: dict[str, Tensor], seed: int = 0):
        super().__init__()
        self.config = adapter_config(wanted)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.subjects = SubjectModules(self.config)
            self.unet = self._pairs(shapes.unet_shapes(self.config, wanted.rank))
            self.text = self._pairs(self._text_shapes(wanted.text_rank))
        chosen = {k: v for k, v in vision.items() if wanted.vision and k.startswith(tuple(wanted.vision))}
        if wanted.vision and not chosen:
            raise ValueError(f"adapter.vision {wanted.vision} names no weight of the image encoder; it has {sorted(vision)[:3]} ...")
        self.vision = nn.ParameterDict({k.replace(".", DOT): nn.Parameter(v.detach().clone().float()) for k, v in chosen.items()})

    def _text_shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        pairs: dict[str, tuple[int, ...]] = {}
        for stem in released.text_stems(self.config) if rank else ():
            rows, columns = shapes.text_shape(self.config, stem)
            down, up = pair_keys(stem)
            pairs |= {down: (rank, columns), up: (rows, rank)}
        return pairs

    @staticmethod
    def _pairs(shapes: dict[str, tuple[int, ...]]) -> nn.ParameterDict:
        def begin(key: str, shape: tuple[int, ...]) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape) if key.endswith(".up") else torch.randn(shape) / shape[1] ** 0.5)

        return nn.ParameterDict({key.replace(".", DOT): begin(key, shape) for key, shape in shapes.items()})

    @staticmethod
    def pairs(parameters: nn.ParameterDict) -> dict[str, LowRank]:
        """{module path: LowRank} over the live parameters."""
        stems = [k.removesuffix(f"{DOT}down") for k in parameters if k.endswith(f"{DOT}down")]
        return {s.replace(DOT, "."): LowRank(parameters[f"{s}{DOT}down"], parameters[f"{s}{DOT}up"]) for s in stems}

    def vision_weights(self) -> dict[str, Tensor]:
        """Fine-tuned image encoder weights by the encoder's own keys."""
        return {k.replace(DOT, "."): v for k, v in self.vision.items()}

    def view(self) -> MMDiffAdapter:
        """The same parameters as the record that inference works on."""
        return MMDiffAdapter(
            self.config, self.subjects, self.pairs(self.unet), self.pairs(self.text), self.vision_weights(), "training", "training"
        )


def to_flat(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `TrainableAdapter` state dict -> the checkpoint's flat names ("modules.", "unet.", "text.", "vision.")."""
    return {key.replace("subjects.", "modules.", 1).replace(DOT, "."): tensor for key, tensor in state.items()}


def from_flat(flat: dict[str, Tensor], module: TrainableAdapter) -> None:
    """Load a checkpoint's flat tensors; every parameter must be there."""
    names = {to_flat({k: v}).popitem()[0]: k for k, v in module.state_dict().items()}
    if set(names) != set(flat):
        raise ValueError(f"the checkpoint does not fit this run's adapter: {sorted(set(names) ^ set(flat))[:3]} differ")
    module.load_state_dict({names[k]: v.float() for k, v in flat.items()})
