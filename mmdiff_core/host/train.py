"""Command: train an MM-Diff adapter on a ComfyUI base (SDXL, SD1.5, or the small world).

    python -m mmdiff_core.host.train RUN.json OUT [--init ADAPTER.safetensors]
    accelerate launch --num_processes 4 -m mmdiff_core.host.train RUN.json OUT

RUN.json is a `training.config.RunConfig`; OUT receives states to go on from, samples, and adapter.safetensors for Load MM-Diff.
Run it again with the same OUT to go on.
"""
from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import checkpoint
from ..training.config import RunConfig
from ..training.example import ExampleSource
from ..training.loop import fit
from ..training.run_state import LoopConfig, RunError
from ..training.task import MMDiffTask
from ..training.trainable import to_flat
from .build import SMALL_WORLD, build_task, hardware
from .start import use_comfyui

log = logging.getLogger(__name__)


def load_data(data: Mapping, seed: int) -> ExampleSource:
    """A run's "data": {"kind": "small-world", ...} or {"kind": "files", "records": [...], ...}."""
    wanted = dict(data)
    kind = wanted.pop("kind", None)
    if kind == SMALL_WORLD:
        from ..small_world.examples import SmallWorldExamples
        return SmallWorldExamples(**{"seed": seed, **wanted})
    if kind == "files":
        from ..training.files import DataConfig, FileExamples
        from ..training.records import read_records
        records = [r for path in wanted.pop("records", []) for r in read_records(Path(path)).records]
        faces = find_faces(wanted.pop("faces")) if "faces" in wanted else None
        return FileExamples(records, wanted.pop("seed", seed), DataConfig.from_dict(wanted), faces)
    raise ValueError(f'data.kind is {kind!r}, expected "{SMALL_WORLD}" or "files"')


def find_faces(wanted: Mapping):
    """"faces": {"root": folder of models/, "model": "buffalo_l", "device": "auto"} -> crop -> embedding and aligned crop, or None
    where no face is seen."""
    from ..references.faces import load_analyser
    analyser = load_analyser(Path(wanted["root"]), wanted.get("model", "buffalo_l"), wanted.get("device", "auto"))

    def faces(crop: Tensor) -> tuple[Tensor, Tensor] | None:
        try:
            embedding, aligned, _ = analyser.portrait((crop * 255).round().byte().movedim(0, -1).numpy(), 0, "a training crop")
        except ValueError:      # no face in this crop
            return None
        return torch.from_numpy(embedding).float(), torch.from_numpy(aligned.copy()).movedim(-1, 0).float() / 255

    return faces


def export_with(run: RunConfig, task: MMDiffTask, command: str, init: Path | None = None):
    """What `fit` calls with the weights: writes adapter.safetensors in the layout that Load MM-Diff reads."""
    begun = checkpoint.history(init) if init else ""

    def export(weights: Mapping[str, Tensor], path: Path, facts: dict) -> None:
        flat = to_flat({k.removeprefix("module.").removeprefix("adapter."): v.detach().cpu() for k, v in weights.items()})
        header = {"run": run.to_json(), "made_by": command, "hardware": hardware(), "torch": torch.__version__, **facts}
        if init:
            header["begun_from"] = begun
        checkpoint.save_single(path, task.adapter.config, flat, extra={k: str(v) for k, v in header.items()})

    return export


def sample_with(task: MMDiffTask, source: ExampleSource, count: int = 6):
    """What `fit` calls every `sample_every` steps: a grid of pictures, and the subjects' maps beside their masks."""
    def sample(step: int, folder: Path) -> None:
        from .contact import training_grid
        training_grid(task, source.batch(0, count), folder / "samples.png")

    return sample


def compare_cost(task: MMDiffTask, source: ExampleSource, loop: LoopConfig, repeats: int = 3) -> str:
    """One line: a step of this training beside a plain denoising step of the base (forward and backward to the latents, no adapter, no
    maps) on the same machine and batch: the best of `repeats` each, taken in turn; on a GPU the peak memory too."""
    batch, device = source.batch(0, loop.batch), task.bridge.alphas.device
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(loop.mixed_precision)
    latents = task.bridge.latents(torch.stack([e.pixels for e in batch]).to(device))
    context, vector, _ = task.bridge.conditioning([""] * len(batch), [()] * len(batch), tuple(batch[0].pixels.shape[-2:]), None)
    timesteps = torch.full((len(batch),), len(task.bridge.alphas) // 2, device=device)

    def plain() -> Tensor:
        out, _ = task.bridge.predict(latents.clone().requires_grad_(True), timesteps, context.detach(), vector, {})
        return out.float().square().mean()

    def measure(step, strength: float) -> tuple[float, int]:
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
        return time.perf_counter() - began, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0

    ours, base = zip(*[(measure(lambda: task(batch)["loss"], 1.0), measure(plain, 0.0)) for _ in range(repeats)])
    task.bridge.strength = 1.0
    (seconds, memory), (plain_seconds, plain_memory) = min(ours), min(base)
    line = f"a step of {len(batch)}: {seconds:.3f} s, {seconds / plain_seconds:.2f} times a plain denoising step of the base"
    return line + (f"; peak memory {memory / 2**30:.2f} GiB and {plain_memory / 2**30:.2f} GiB" if memory else "")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.host.train", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's config, JSON")
    parser.add_argument("out", type=Path, help="folder for states, samples and the adapter")
    parser.add_argument("--init", type=Path, help="an adapter of the same sizes to begin from")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU also where there is a GPU")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run = RunConfig.from_json(args.run.read_text(encoding="utf-8"))
        loop = LoopConfig.from_dict({"seed": run.seed, **run.loop})
        use_comfyui(cpu=True if args.cpu else None)
        device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
        begun = checkpoint.read(args.init) if args.init else None
        task, source = build_task(run, device, begun and begun[1]), load_data(run.data, run.seed)
        command = f"python -m mmdiff_core.host.train {args.run.name} OUT" + (f" --init {args.init.name}" if begun else "")
        report = fit(task, source, loop, args.out, export=export_with(run, task, command, args.init), sample=sample_with(task, source))
        cost = compare_cost(task, source, loop)
    except (ValueError, OSError, RunError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{report}\n{cost}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
