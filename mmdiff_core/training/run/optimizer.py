"""What a run trains, its learning rate, and the optimisers that it can choose.

Muon (Jordan et al. 2024, in torch since 2.9) moves every direction of a matrix by the same amount,
which helps LoRA pairs that start at zero; parameters that are no matrices use AdamW beside it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

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

    ValueError: the groups are not the trained parameters, each once; or this torch has no Muon.
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
    """Matrices by torch's Muon, all else by torch's AdamW, with one list of groups and one state.

    So it is saved, resumed and scheduled like any optimiser. Muon's rate is `muon_rate` times a
    group's, scaled so that its step has 0.2 times the length of a step of AdamW.

    A convolution's kernel [out in h w] counts as the matrix [out, in h w]. torch's Muon accepts two
    axes only, so it gets such a parameter as a view that shares its values.
    """

    def __init__(self, groups: list[dict], config: LoopConfig) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f'optimizer "muon" needs torch 2.9 or newer, this is {torch.__version__}: update '
                'torch, or set "adamw"'
            )
        matrices, others = [], []
        # each as the model knows it, and as a matrix
        self._kernels: list[tuple[nn.Parameter, nn.Parameter]] = []
        for group in groups:
            rate = group.get("lr", config.learning_rate)
            decay = group.get("weight_decay", config.weight_decay)
            two = [self._as_matrix(p) for p in group["params"] if p.ndim >= 2]
            rest = [p for p in group["params"] if p.ndim < 2]
            if two:
                rate_of_two = rate * config.muon_rate
                matrices.append({"params": two, "lr": rate_of_two, "weight_decay": decay})
            if rest:
                others.append({"params": rest, "lr": rate, "weight_decay": decay})
        self._inner: list[torch.optim.Optimizer] = []
        if matrices:
            momentum = config.betas[0]
            muon = torch.optim.Muon(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            self._inner.append(muon)
        if others:
            self._inner.append(torch.optim.AdamW(others, betas=config.betas))
        self._counts = [len(inner.param_groups) for inner in self._inner]
        super().__init__([group for inner in self._inner for group in inner.param_groups], {})

    def _as_matrix(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.ndim == 2:
            return parameter
        matrix = nn.Parameter(parameter.detach().flatten(1))
        self._kernels.append((parameter, matrix))
        return matrix

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for kernel, _ in self._kernels:
            kernel.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kernel, matrix in self._kernels:
            flat = (len(kernel), -1)
            matrix.data = kernel.data.view(flat)
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(flat)
        groups = iter(self.param_groups)
        for inner, count in zip(self._inner, self._counts, strict=True):
            inner.param_groups = [next(groups) for _ in range(count)]
            inner.state = self.state
            inner.step()
        return loss
