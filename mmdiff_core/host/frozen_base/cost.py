"""What a training step costs beside a plain denoising step of the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...training.bridge import latents_of
from ...training.example import Example
from ...training.task import MMDiffTask

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def compare_cost(
    task: MMDiffTask, batch: Sequence[Example], mixed_precision: str, repeats: int = 3
) -> str:
    """One line: seconds of a step, and their ratio to a plain step's; on a GPU the peak memory.

    The plain step is forward and backward to the latents, without adapter and maps, on the same
    batch. Each is the best of `repeats`, taken in turn.
    """

    def ours() -> Tensor:
        return task(batch)["loss"]

    plain, times = _plain_step(task, batch), []
    for _ in range(repeats):
        own = _measure(task, ours, mixed_precision, 1.0)
        times.append((own, _measure(task, plain, mixed_precision, 0.0)))
    task.bridge.strength = 1.0
    (seconds, memory), (plain_seconds, plain_memory) = map(min, zip(*times))
    line = (
        f"a step of {len(batch)}: {seconds:.3f} s, {seconds / plain_seconds:.2f} times a plain "
        "denoising step of the base"
    )
    if not memory:
        return line
    return f"{line}; peak memory {memory / 2**30:.2f} GiB and {plain_memory / 2**30:.2f} GiB"


def _plain_step(task: MMDiffTask, batch: Sequence[Example]) -> Callable[[], Tensor]:
    bridge, count = task.bridge, len(batch)
    device = bridge.alphas.device
    latents = latents_of(bridge, batch)
    text = bridge.conditioning([replace(e, caption="", subjects=()) for e in batch], None)
    context = text.context.detach()
    timesteps = torch.full((count,), len(bridge.alphas) // 2, device=device)

    def step() -> Tensor:
        noisy = latents.clone().requires_grad_(True)
        out = bridge.predict(noisy, timesteps, context, text.vector, {}).prediction
        return out.float().square().mean()

    return step


def _measure(
    task: MMDiffTask, step: Callable[[], Tensor], mixed_precision: str, strength: float
) -> tuple[float, int]:
    """Seconds and, on a GPU, bytes of one step forward and backward."""
    device, kind = task.bridge.alphas.device, PRECISIONS.get(mixed_precision)
    task.bridge.strength = strength
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None):
        loss = step()
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    task.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - began
    return seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
