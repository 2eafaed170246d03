"""A run's training module on ComfyUI's models: to train, to score, to sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints import checkpoint
from ...training.config import RunConfig
from ...training.task import MMDiffTask
from ...training.trainable import TrainableAdapter, from_flat
from .base import BaseModels, load_base
from .bridge import HostBridge


def build_task(
    run: RunConfig,
    device: torch.device | str = "cpu",
    flat: Mapping[str, Tensor] | None = None,
    base: BaseModels | None = None,
) -> MMDiffTask:
    """The run's training module on its base.

    flat  tensors of a checkpoint to start from
    base  the models, where they are loaded already
    """
    models = base or load_base(run.base)
    adapter = TrainableAdapter(run.adapter, models.clip_vision.model.state_dict(), run.seed)
    if flat is not None:
        from_flat(dict(flat), adapter)
    adapter.to(device)
    dtype = torch.float32 if str(device) == "cpu" else models.model.model.get_dtype()
    return MMDiffTask(adapter, HostBridge(models, adapter, device, dtype), run)


def load_task(path: Path | None) -> MMDiffTask:
    """An exported small-world adapter by the run in its header; None = the base alone."""
    if path is None:
        adapter = {"name": "small-world", "rank": 1, "text_rank": 0, "vision": []}
        task = build_task(RunConfig.from_dict({"base": "small-world", "adapter": adapter}))
        task.bridge.strength = 0.0
        return task
    run = RunConfig.from_header(checkpoint.header_of(path), path.name)
    return build_task(run, flat=checkpoint.read(path)[1])
