"""What a run trains, its learning rate, and the optimisers that it can choose.

Muon (Jordan et al. 2024) moves every direction of a matrix by the same amount, which helps LoRA
pairs that start at zero; parameters that are no matrices use AdamW beside it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from .config import LoopConfig

Groups = Callable[[nn.Module, float], list[dict]]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name.

    ValueError if there are none, or if one of them cannot be trained well.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires gradients: nothing to train")
    for name, parameter in trained.items():
        if parameter.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode, as ComfyUI runs nodes: make the model "
                "in inference_mode(False)"
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {parameter.dtype}: trained weights must be float32, where small "
                "updates are not rounded away. For speed set mixed_precision."
            )
    return trained


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Share of the peak rate at optimiser step `step`, counted from 0.

    It rises linearly in the warm-up, then stays or falls as half a cosine.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_fraction + (1 - config.final_fraction) * (1 + math.cos(math.pi * done)) / 2


def optimizer_for(
    model: nn.Module, trained: Mapping[str, nn.Parameter], config: LoopConfig, groups: Groups | None
) -> torch.optim.Optimizer:
    """`config.optimizer` over the caller's groups or one group.

    ValueError: the groups are not the trained parameters, each once.
    """
    given = [{"params": list(trained.values())}]
    if groups:
        made = groups(model, config.learning_rate)
        given = [{**group, "params": list(group["params"])} for group in made]
    held = {id(p) for group in given for p in group["params"]}
    if lost := [name for name, p in trained.items() if id(p) not in held]:
        raise ValueError(
            f"parameter_groups leaves out {len(lost)} trained parameters, the first is {lost[0]}"
        )
    if len(held) > len(trained):
        raise ValueError(
            f"parameter_groups holds {len(held) - len(trained)} parameters that do not require "
            "gradients"
        )
    if config.optimizer == "muon":
        return MuonAndAdamW(given, config)
    rate, decay = config.learning_rate, config.weight_decay
    return torch.optim.AdamW(given, lr=rate, betas=config.betas, weight_decay=decay)


class MuonAndAdamW(torch.optim.Optimizer):
    """Matrices by Muon at `muon_rate` times a group's rate, everything else by torch's AdamW.

    One list of groups and one state, so that it is saved, resumed and scheduled as any optimiser.
    A convolution's kernel [out in h w] counts as the matrix [out, in h w].
    """

    def __init__(self, groups: list[dict], config: LoopConfig) -> None:
        matrices, others = [], []
        for group in groups:
            rate = group.get("lr", config.learning_rate)
            decay = group.get("weight_decay", config.weight_decay)
            two = [p for p in group["params"] if p.ndim >= 2]
            rest = [p for p in group["params"] if p.ndim < 2]
            if two:
                muon_rate = rate * config.muon_rate
                matrices.append({"params": two, "lr": muon_rate, "weight_decay": decay})
            if rest:
                others.append({"params": rest, "lr": rate, "weight_decay": decay})
        self._inner: list[torch.optim.Optimizer] = []
        if matrices:
            self._inner.append(Muon(matrices, momentum=config.betas[0]))
        if others:
            self._inner.append(torch.optim.AdamW(others, betas=config.betas))
        self._counts = [len(inner.param_groups) for inner in self._inner]
        super().__init__([group for inner in self._inner for group in inner.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = iter(self.param_groups)
        for inner, count in zip(self._inner, self._counts, strict=True):
            inner.param_groups, inner.state = list(islice(groups, count)), self.state
            inner.step()
        return loss


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov momentum; an update is as long as 0.2 of AdamW's.

    The same steps as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, but in float32 and for
    kernels as well. torch computes in bfloat16, which a CPU without bfloat16 units does about
    thirty times as slowly as the whole rest of a training step.
    """

    def __init__(self, groups: list[dict], momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            for parameters in alike(given):
                updates = orthogonalised(torch.stack([self._blend(p, group) for p in parameters]))
                rate = group["lr"] * 0.2 * max(updates.shape[1:]) ** 0.5
                for p, update in zip(parameters, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p).to(p.dtype), alpha=-rate)

    def _blend(self, p: Tensor, group: dict) -> Tensor:
        """Gradient and its average, as Nesterov blends them, as a matrix [m n]."""
        state, momentum = self.state[p], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum).flatten(1)


def alike(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The parameters in groups that are worked on at once: on a GPU, where many small products
    wait for one another, those of one shape; on a CPU each one alone."""
    groups: dict[object, list[Tensor]] = {}
    for p in parameters:
        groups.setdefault(id(p) if p.device.type == "cpu" else p.shape, []).append(p)
    return list(groups.values())


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)       # Muon's quintic, five times


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices [... m n], singular values moved towards 1 (Newton-Schulz, in float32).

    Every factor of the iteration is a polynomial of the small Gram matrix, so the products are
    formed there, and the large matrix is multiplied once.
    """
    x = matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    a, b, c = NEWTON_SCHULZ
    gram, product = x @ x.mT, None
    for _ in range(steps):
        factor = b * gram + c * (gram @ gram)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x
