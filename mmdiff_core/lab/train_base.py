"""What trains the base: examples that are numbers, files with the run in the header."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..training.data.workers import MadeAhead
from ..training.example import Example
from ..training.run.config import LoopConfig
from ..training.run.loop import fit
from ..training.run.report import hardware
from .encoder_tasks import ReaderTask, VisionTask
from .text_task import TextTask
from .unet_task import UNetTask

EMA = 0.998
LARGEST = 7_500_000  # bytes of one file; a larger one is written in parts


@dataclass(frozen=True)
class Numbers:
    """Examples that are numbers: the tasks here draw their images themselves."""

    def example(self, index: int) -> Example:
        """The example of that number."""
        return Example(torch.empty(0), "", (), index)

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        """`size` examples from number `start` on."""
        return tuple(self.example(i) for i in range(start, start + size))


def make_task(what: str, init: Path | None, seed: int, layout: float) -> nn.Module:
    """The module that trains "unet", "vision" or "reader"."""
    if what == "unet":
        return UNetTask(init, seed, layout)
    return {"text": TextTask, "vision": VisionTask, "reader": ReaderTask}[what](init, seed)


def write(
    folder: Path, name: str, tensors: Mapping[str, Tensor], header: Mapping[str, str]
) -> None:
    """One of the base's files as float16, in parts when it is large.

    A file appears under its name only when it is whole.
    """
    parts: list[dict[str, Tensor]] = [{}]
    for key, tensor in tensors.items():
        kept = tensor if tensor.dtype == torch.int32 else tensor.detach().half()
        kept = kept.cpu().contiguous().clone()
        if sum(t.nbytes for t in parts[-1].values()) + kept.nbytes > LARGEST:
            parts.append({})
        parts[-1][key] = kept
    for number, part in enumerate(parts, 1):
        stem = name if len(parts) == 1 else f"{name}-{number}"
        path = folder / f"{stem}.safetensors"
        save_file(part, f"{path}.part", metadata=dict(header))
        Path(f"{path}.part").replace(path)


def header_of(folder: Path, name: str) -> dict[str, str]:
    """The header of one of the base's files, or {}."""
    for path in sorted(folder.glob(f"{name}*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    return {}


def export_with(task: nn.Module, args: argparse.Namespace):
    """What `fit` calls with the averaged weights: writes the files with the run in the header."""
    began = time.time()
    options = {
        "steps": args.steps,
        "batch": args.batch,
        "rate": args.rate,
        "optimizer": args.optimizer,
        "muon-rate": args.muon_rate,
        "schedule": args.schedule,
        "layout": args.layout,
        "seed": args.seed,
    }
    told = " ".join(f"--{name} {value}" for name, value in options.items())
    command = f"python -m mmdiff_core pretrain {args.what} OUT {told}"

    def export(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str]) -> None:
        header = {"made_by": command, "hardware": hardware(), "torch": torch.__version__}
        header["minutes"] = f"{(time.time() - began) / 60:.1f} of this process"
        header["steps"] = str(facts["training_step"])
        if args.init:
            header["begun_from"] = header_of(args.init, args.what).get("made_by", "")
        for name, tensors in task.files(weights).items():
            write(path.parent, name, tensors, header)

    return export


def loop_config(args: argparse.Namespace) -> LoopConfig:
    """How the run is trained. The warm-up of a long run does not depend on its number of steps, so
    that a run can be shortened or extended while it is going on."""
    return LoopConfig(
        steps=args.steps,
        batch=args.batch,
        learning_rate=args.rate,
        betas=(0.9, 0.99),
        warmup_steps=200 if args.steps >= 1000 else args.steps // 10,
        schedule=args.schedule,
        final_fraction=0.01,
        ema_decay=EMA,
        mixed_precision=args.precision,
        seed=args.seed,
        save_every=args.save_every,
        keep_last=1,
        log_every=50,
        workers=2 * args.processes,
        tracker=None,
        optimizer=args.optimizer,
        muon_rate=args.muon_rate,
    )


def train(args: argparse.Namespace) -> str:
    """Train as the command line of `commands.pretrain` says; the report."""
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU that has it
    torch.manual_seed(args.seed)
    task = make_task(args.what, args.init, args.seed, args.layout)
    source = getattr(task, "source", Numbers())
    if args.processes:
        source = MadeAhead(source, args.processes)
    report = fit(task, source, loop_config(args), args.out, export=export_with(task, args))
    return str(report)
