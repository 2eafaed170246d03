"""The adapter as one torch module: what inference runs, with gradients; nothing of the base."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..checkpoints import released, shapes
from ..config import CONFIGS, MMDiffConfig
from ..method.adapter import MMDiffAdapter, SubjectModules, pair_keys
from ..method.lora import LowRank
from .config import AdapterConfig

DOT = "/"  # torch refuses dots in parameter names

Shapes = dict[str, tuple[int, ...]]


def adapter_config(wanted: AdapterConfig) -> MMDiffConfig:
    """The named sizes, with the run's depth of the refiner and its choice of routers."""
    config = dataclasses.replace(CONFIGS[wanted.name], routed=wanted.routed)
    if wanted.refiner_depth is None:
        return config
    return dataclasses.replace(config, refiner_depth=wanted.refiner_depth)


class TrainableAdapter(nn.Module):
    """Projections, refiner, fusion, LoRA pairs and the fine-tuned part of the image encoder.

    LoRA starts without effect: down is small noise, up is zero. So do routers: every subject has
    the same share. `vision` starts as the base weights that are passed in.
    """

    def __init__(self, wanted: AdapterConfig, vision: dict[str, Tensor], seed: int = 0):
        super().__init__()
        self.config = adapter_config(wanted)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.subjects = SubjectModules(self.config)
            self.unet = _start_pairs(shapes.lora_shapes(self.config, wanted.rank))
            self.text = _start_pairs(_text_shapes(self.config, wanted.text_rank))
            # drawn last: all else starts as it does without routers
            self.unet.update(_start_pairs(shapes.router_shapes(self.config, wanted.rank)))
        tuned = {}
        for key, weight in vision.items():
            if key.startswith(tuple(wanted.vision)):
                tuned[key.replace(".", DOT)] = nn.Parameter(weight.detach().clone().float())
        self.vision = nn.ParameterDict(tuned)
        if wanted.vision and not tuned:
            raise ValueError(
                f"adapter.vision {wanted.vision} names no weight of the image encoder; it has "
                f"{sorted(vision)[:3]} ..."
            )

    def vision_weights(self) -> dict[str, Tensor]:
        """Fine-tuned image encoder weights by the encoder's own keys."""
        return {key.replace(DOT, "."): weight for key, weight in self.vision.items()}

    def view(self) -> MMDiffAdapter:
        """The same parameters as the record that inference works on."""
        unet, text = live_pairs(self.unet), live_pairs(self.text)
        vision = self.vision_weights()
        return MMDiffAdapter(self.config, self.subjects, unet, text, vision, "training", "training")


def _text_shapes(config: MMDiffConfig, rank: int) -> Shapes:
    pairs: Shapes = {}
    for stem in released.text_stems(config) if rank else ():
        rows, columns = shapes.text_shape(config, stem)
        down, up = pair_keys(stem)
        pairs |= {down: (rank, columns), up: (rows, rank)}
    return pairs


def _start_pairs(wanted: Shapes) -> nn.ParameterDict:
    pairs = {}
    for key, shape in wanted.items():
        zero = key.endswith(".up")
        start = torch.zeros(shape) if zero else torch.randn(shape) / shape[1] ** 0.5
        pairs[key.replace(".", DOT)] = nn.Parameter(start)
    # from a dict, ParameterDict sorts: the order of the optimiser's state in saved runs
    return nn.ParameterDict(pairs)


def pair_stems(parameters: nn.ParameterDict) -> list[str]:
    """Module paths of the LoRA pairs among these parameters."""
    downs = [key for key in parameters if key.endswith(f"{DOT}down")]
    return [key.removesuffix(f"{DOT}down").replace(DOT, ".") for key in downs]


def live_pair(parameters: nn.ParameterDict, stem: str) -> LowRank:
    """The pair of a module path over the live parameters."""
    key = stem.replace(".", DOT)
    return LowRank(parameters[f"{key}{DOT}down"], parameters[f"{key}{DOT}up"])


def live_pairs(parameters: nn.ParameterDict) -> dict[str, LowRank]:
    """{module path: LowRank} over the live parameters."""
    return {stem: live_pair(parameters, stem) for stem in pair_stems(parameters)}


def to_flat(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `TrainableAdapter` state dict -> the checkpoint's flat names.

    These start with "modules.", "unet.", "text." or "vision.".
    """
    return {_flat_name(key): tensor for key, tensor in state.items()}


def _flat_name(key: str) -> str:
    return key.replace("subjects.", "modules.", 1).replace(DOT, ".")


def from_flat(flat: dict[str, Tensor], module: TrainableAdapter) -> None:
    """Load a checkpoint's flat tensors; ValueError unless they are exactly the module's."""
    names = {_flat_name(key): key for key in module.state_dict()}
    if wrong := sorted(set(names) ^ set(flat)):
        raise ValueError(f"the checkpoint does not fit this run's adapter: {wrong[:3]} differ")
    module.load_state_dict({names[key]: tensor.float() for key, tensor in flat.items()})
