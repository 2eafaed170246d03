"""A toy model and a toy source for the training loop, and one call of it."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mmdiff_core.training.example import Example
from mmdiff_core.training.run import run_state
from mmdiff_core.training.run.config import LoopConfig
from mmdiff_core.training.run.loop import fit

CONFIG = LoopConfig(
    steps=20,
    batch=2,
    learning_rate=0.05,
    warmup_steps=3,
    schedule="cosine",
    final_fraction=0.1,
    clip_norm=0.5,
    ema_decay=0.9,
    save_every=5,
    keep_last=2,
    log_every=4,
    workers=0,
    tracker=None,
)


class Toy(nn.Module):
    """Trained: a small network.

    Frozen: its output scale. Noise follows from the example's number. `spoil`: {index: loss}.
    """

    def __init__(self, spoil: dict[int, float] | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.scale = nn.Parameter(torch.tensor([2.0]), requires_grad=False)
        self.spoil = spoil or {}

    def forward(self, batch: tuple[Example, ...]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([e.pixels.flatten() for e in batch]).to(self.scale)
        noise = torch.stack(
            [torch.randn(12, generator=torch.Generator().manual_seed(e.index)) for e in batch]
        ).to(pixels)
        errors = (
            self.scale * self.second(torch.tanh(self.first(pixels + 0.1 * noise)))
            - pixels.sum(1, keepdim=True)
        ) ** 2
        spoilt = torch.tensor([self.spoil.get(e.index, 1.0) for e in batch]).mean()
        return {"loss": errors.mean() * spoilt, "size": self.second.weight.norm()}


class Source:
    """Example number i is made from i alone.

    `seen` notes what was asked; `at` = {start: called when that batch is asked}.
    """

    def __init__(self, at: dict | None = None, pause: float = 0) -> None:
        self.seen, self.at, self.pause = [], at or {}, pause

    def example(self, index: int) -> Example:
        return Example(
            torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(index)), "", (), index
        )

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        self.seen.append(start)
        time.sleep(self.pause)
        self.at.get(start, lambda: None)()
        return tuple(self.example(i) for i in range(start, start + size))


def export(weights, path, header) -> None:
    save_file({k: v.detach().clone() for k, v in weights.items()}, path, metadata=header)


def full_disk(*_) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def train(
    folder: Path,
    config: LoopConfig = CONFIG,
    source: Source | None = None,
    model: Toy | None = None,
    **options,
):
    """One call of fit -> (report, the newest state's tensors and optimiser, the model)."""
    model = model or Toy()
    report = fit(model, source or Source(), config, folder, **options)
    return report, whole(folder), model


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a folder's newest state by one flat name each."""
    state = run_state.RunStates(folder, 1).newest()
    names = ("weights", "ema") if state.facts["ema_decay"] else ("weights",)
    # not the mapped file
    found = {f"{name}.{k}": v.clone() for name in names for k, v in state.tensors(name).items()}
    for number, values in state.optimizer()["optimizer"]["state"].items():
        found |= {f"optimizer.{number}.{k}": v for k, v in values.items()}
    return found | {"step": torch.tensor(state.facts["step"])}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a: dict, b: dict, within: float) -> bool:
    return a.keys() == b.keys() and all((a[k] - b[k]).abs().max() <= within for k in a)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def states(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("state-*"))
