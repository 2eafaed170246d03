"""A task on the small world's base with a shaken adapter, and its gradients."""

from __future__ import annotations

import torch

from mmdiff_core.training.config import AdapterConfig, ConstraintConfig, RunConfig

RUN = RunConfig(
    base="small-world",
    adapter=AdapterConfig(name="small-world", rank=4, text_rank=4),
    constraint=ConstraintConfig(text=0.3, image=0.2),
)


def shake(task, seed: int = 0, scale: float = 0.05) -> None:
    """Nothing trained is zero any more, so that every part shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in task.adapter.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def build(run: RunConfig = RUN):
    from mmdiff_core.host.frozen_base.build import build_task

    task = build_task(run)
    shake(task)
    return task


def gradients(task, batch) -> dict[str, torch.Tensor]:
    task.zero_grad(set_to_none=True)
    task(batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in task.named_parameters()}
