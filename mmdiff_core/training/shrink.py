"""Command: a trained adapter with a lower rank of the UNet's LoRA, so that the file is smaller.

    python -m mmdiff_core.training.shrink ADAPTER.safetensors SMALLER.safetensors --rank 24

Every pair becomes the nearest product of that rank (truncated singular value decomposition). A high rank learns sooner than it needs to be
kept; the command prints how much of the pairs' energy stays.
"""
from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoints import checkpoint
from ..method.lora import LowRank
from .config import RunConfig


def truncate(pair: LowRank, rank: int) -> tuple[LowRank, float]:
    """The nearest pair of rank `rank` (down [rank in], up [out rank], the singular values shared between them), and the share of
    the squared norm of up @ down that it keeps. Zeros fill a rank beyond the pair's own."""
    rows, up = torch.linalg.qr(pair.up.double())
    columns, down = torch.linalg.qr(pair.down.double().T)
    left, values, right = torch.linalg.svd(up @ down.T)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    smaller_up, smaller_down = rows @ left[:, :kept] * root, root[:, None] * (right[:kept] @ columns.T)
    missing = rank - kept
    whole = values.square().sum()
    return LowRank(
        torch.cat([smaller_down, smaller_down.new_zeros(missing, smaller_down.shape[1])]).float(),
        torch.cat([smaller_up, smaller_up.new_zeros(len(smaller_up), missing)], 1).float(),
    ), float(values[:kept].square().sum() / whole) if whole > 0 else 1.0


def lower_rank(flat: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """A checkpoint's flat tensors with all "unet." pairs at this rank, and the mean share of energy kept."""
    smaller, shares = dict(flat), []
    for stem in (k.removesuffix(".down") for k in flat if k.startswith("unet.") and k.endswith(".down")):
        pair, share = truncate(LowRank(flat[f"{stem}.down"].float(), flat[f"{stem}.up"].float()), rank)
        smaller[f"{stem}.down"], smaller[f"{stem}.up"] = pair.down, pair.up
        shares.append(share)
    return smaller, sum(shares) / len(shares)


def shrink(source: Path, target: Path, rank: int) -> str:
    """Write `target` in single-file layout; the header's run gets the new rank, so that training can go on from it (--init)."""
    if rank < 1:
        raise ValueError(f"--rank is {rank}, expected 1 or more")
    config, flat = checkpoint.read(source)
    with safe_open(str(source), framework="pt") as file:
        header = {k: v for k, v in (file.metadata() or {}).items() if k not in ("format", "format_version", "config")}
    smaller, kept = lower_rank(flat, rank)
    if "run" in header:
        run = RunConfig.from_json(header["run"])
        header["run"] = dataclasses.replace(run, adapter=dataclasses.replace(run.adapter, rank=rank)).to_json()
        header["trained_rank"] = str(run.adapter.rank)
    checkpoint.save_single(target, config, smaller, extra=header | {"energy_kept": f"{kept:.4f}"})
    return f"{target.name}: rank {rank}, {100 * kept:.1f} % of the pairs' energy kept, {target.stat().st_size / 1e6:.2f} MB"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.training.shrink", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="an adapter in one .safetensors")
    parser.add_argument("target", type=Path, help="where the smaller one goes")
    parser.add_argument("--rank", type=int, required=True)
    args = parser.parse_args(argv)
    try:
        sys.stdout.write(shrink(args.source, args.target, args.rank) + "\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
