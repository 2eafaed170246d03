"""The optimisers a run can choose. Muon (Jordan et al. 2024, as torch has it since 2.9) moves every direction of a matrix alike,
which is what LoRA pairs that begin at nothing need; what is no matrix goes by AdamW beside it."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from .run_state import LoopConfig

Groups = Callable[[nn.Module, float], list[dict]]


def optimizer_for(
    model: nn.Module, trained: Mapping[str, nn.Parameter], config: LoopConfig, groups: Groups | None
) -> torch.optim.Optimizer:
    """`config.optimizer` over the caller's groups or one group.

    ValueError: the groups are not the trained parameters, each once; or this torch has no Muon.
    """
    given = groups(model, config.learning_rate) if groups else [{"params": list(trained.values())}]
    given = [{**group, "params": list(group["params"])} for group in given]
    held = {id(p) for group in given for p in group["params"]}
    if lost := [name for name, p in trained.items() if id(p) not in held]:
        raise ValueError(f"parameter_groups leaves out {len(lost)} trained parameters, the first is {lost[0]}")
    if len(held) > len(trained):
        raise ValueError(f"parameter_groups holds {len(held) - len(trained)} parameters that do not require gradients")
    if config.optimizer == "muon":
        return MuonAndAdamW(given, config)
    return torch.optim.AdamW(given, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


class MuonAndAdamW(torch.optim.Optimizer):
    """Matrices by torch's Muon at `muon_rate` times a group's rate (scaled so that a step is 0.2 AdamW steps long), all else by
    torch's AdamW. One list of groups and one state, so that it is saved, resumed and scheduled as any optimiser.

    A convolution's kernel [out in h w] counts as the matrix [out, in h w]; torch's Muon wants two axes, so such a parameter is known
    to it by a view that shares its values.
    """

    def __init__(self, groups: list[dict], config: LoopConfig) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f'optimizer "muon" needs torch 2.9 or newer, this is {torch.__version__}: update torch, or set "adamw"')
        matrices, others = [], []
        self._kernels: list[tuple[nn.Parameter, nn.Parameter]] = []     # as the model knows it, and as a matrix
        for group in groups:
            rate, decay = group.get("lr", config.learning_rate), group.get("weight_decay", config.weight_decay)
            two = [self._as_matrix(p) for p in group["params"] if p.ndim >= 2]
            rest = [p for p in group["params"] if p.ndim < 2]
            matrices += [{"params": two, "lr": rate * config.muon_rate, "weight_decay": decay}] if two else []
            others += [{"params": rest, "lr": rate, "weight_decay": decay}] if rest else []
        self._inner = [torch.optim.Muon(matrices, momentum=config.betas[0], adjust_lr_fn="match_rms_adamw")] if matrices else []
        self._inner += [torch.optim.AdamW(others, betas=config.betas)] if others else []
        self._counts = [len(inner.param_groups) for inner in self._inner]
        super().__init__([group for inner in self._inner for group in inner.param_groups], {})

    def _as_matrix(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.ndim == 2:
            return parameter
        self._kernels.append((parameter, nn.Parameter(parameter.detach().flatten(1))))
        return self._kernels[-1][1]

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
            matrix.data = kernel.data.view(len(kernel), -1)
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(len(kernel), -1)
        groups = iter(self.param_groups)
        for inner, count in zip(self._inner, self._counts, strict=True):
            inner.param_groups, inner.state = [next(groups) for _ in range(count)], self.state
            inner.step()
        return loss
