"""What encoding the images before a training run gains.

FLOP of SDXL's own sizes, without weights; and images a second of the trainer itself on SDXL at a
fifth of its width (the VAE at a quarter), with random weights, where each step encodes its images
and where they were encoded before.

    COMFYUI_PATH=FOLDER python tests/tools/benchmark_training.py [--size 256] [--threads 1]

Both ways take turns in one process, on the same examples. The reduced text and image encoders have
three layers, so that of SDXL's other costs little more than UNet and VAE is in a step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmark_host import BenchmarkError, use_host


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", type=int, default=256, help="side of the images of the run, in pixels")
    add("--sizes", type=int, nargs="+", default=[512, 1024], help="sides whose FLOP are counted")
    add("--batch", type=int, default=2)
    add("--steps", type=int, default=4, help="of one run")
    add("--repeats", type=int, default=3, help="runs of each way; the median counts")
    add("--threads", type=int, help="of torch")
    add("--flop", action="store_true", help="count FLOP only")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path) -> str:
    """Sentences on images a second of both ways."""
    from cost.training import narrow_task, never, write_photos

    from mmdiff_core.host.frozen_base.latents import recipe_of
    from mmdiff_core.processes import Processes
    from mmdiff_core.training.data.config import DataConfig, FileData
    from mmdiff_core.training.data.encoded.making import Encoding, encode_records
    from mmdiff_core.training.data.encoded.source import EncodedRecords
    from mmdiff_core.training.data.files import FileExamples
    from mmdiff_core.training.data.opened import DecodeRecords
    from mmdiff_core.training.data.reading import read_jsonl

    task, count = narrow_task(), args.batch * args.steps
    records = read_jsonl(write_photos(folder, count, args.size + args.size // 4)).records
    config = DataConfig(side=args.size, aspect=1.0, group=args.batch)
    recipe = recipe_of(FileData(("data",), config=config), task.bridge.encoder)
    encoding = Encoding(recipe, DecodeRecords(), task.bridge.latents)
    began = time.perf_counter()
    encode_records(records, folder / "encoded", encoding, Processes("cpu"), lambda text: None)
    encoded = (time.perf_counter() - began) / count
    held = sum(path.stat().st_size for path in (folder / "encoded").glob("shard-*")) / count
    plain = FileExamples(records, 0, config)
    opened = EncodedRecords(folder / "encoded", recipe, records)
    ways = {"in the step": plain, "before": FileExamples(records, 0, config, open_record=opened)}
    batch = plain.batch(0, args.batch)
    vae = statistics.median(_seconds(lambda: _encode(task, batch)) for _ in range(5))
    found = {name: [] for name in ways}
    for repeat in range(args.repeats + 1):
        for name, source in ways.items():
            known = task.bridge.encoder
            task.bridge.encoder = never if name == "before" else known
            report = _run(task, source, args, folder / f"{name}-{repeat}")
            task.bridge.encoder = known
            if repeat:  # the first one warms up
                found[name].append(report)
    return _told(found, vae, encoded, held, args)


def _encode(task, batch) -> None:
    from mmdiff_core.training.bridge import latents_of

    latents_of(task.bridge, batch)


def _seconds(do) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _run(task, source, args: argparse.Namespace, folder: Path):
    from mmdiff_core.training.run.config import LoopConfig
    from mmdiff_core.training.run.loop import fit

    config = LoopConfig(
        steps=args.steps, batch=args.batch, learning_rate=1e-6, ema_decay=0.0, workers=0,
        save_every=10**6, log_every=10**6, tracker=None,
    )  # fmt: skip
    return fit(task, source, config, folder)


def _told(found: dict, vae: float, encoded: float, held: float, args: argparse.Namespace) -> str:
    """A table, and what it does not say."""
    lines = ["| images encoded | images/s | model, s/step | data, s/step |", "|" + " --- |" * 4]
    rates = {}
    for name, reports in found.items():
        rates[name] = statistics.median(report.images_per_second for report in reports)
        model = statistics.median(report.model_seconds for report in reports) / args.steps
        data = statistics.median(report.data_seconds for report in reports) / args.steps
        lines.append(f"| {name} | {rates[name]:.3f} | {model:.3f} | {data:.3f} |")
    lines.append("")
    pairs = zip(found["before"], found["in the step"], strict=True)
    gains = sorted(one.images_per_second / two.images_per_second for one, two in pairs)
    step = args.batch / rates["in the step"]
    lines.append(
        f"{statistics.median(gains):.3f} times the images a second ({gains[0]:.3f} to "
        f"{gains[-1]:.3f}). The VAE takes {vae:.3f} s of a step of {step:.3f} s "
        f"({vae / step:.1%}). Encoding before takes {encoded:.3f} s and {held / 1e6:.2f} MB an "
        f"image ({args.size} px, two subjects, batch {args.batch})."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    args = read_arguments(argv)
    try:
        use_host("cpu")
    except BenchmarkError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    import torch
    from cost.training import flop_markdown

    if args.threads:
        torch.set_num_threads(args.threads)
    print(flop_markdown(tuple(args.sizes)), flush=True)
    if not args.flop:
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{measure(args, Path(folder))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
