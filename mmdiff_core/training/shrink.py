"""A trained adapter with a lower rank of the UNet's LoRA, so that the file is smaller.

Every pair becomes the nearest product of that rank (truncated singular value decomposition). A high
rank learns sooner than it needs to be kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import checkpoint
from ..checkpoints.contents import MOST_RANK
from ..method.lora import LowRank
from .config import RunConfig


def truncate(pair: LowRank, rank: int) -> tuple[LowRank, float]:
    """The nearest pair of rank `rank`, and the share of the squared norm of up @ down it keeps.

    down [rank in] and up [out rank] share the singular values. Zeros fill a rank beyond the
    pair's own.
    """
    rows, up = torch.linalg.qr(pair.up.double())
    columns, down = torch.linalg.qr(pair.down.double().T)
    left, values, right = torch.linalg.svd(up @ down.T)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    smaller_up = rows @ left[:, :kept] * root
    smaller_down = root[:, None] * (right[:kept] @ columns.T)
    missing, whole = rank - kept, values.square().sum()
    more_down = smaller_down.new_zeros(missing, smaller_down.shape[1])
    more_up = smaller_up.new_zeros(len(smaller_up), missing)
    smaller = LowRank(
        torch.cat([smaller_down, more_down]).float(), torch.cat([smaller_up, more_up], 1).float()
    )
    return smaller, float(values[:kept].square().sum() / whole) if whole > 0 else 1.0


def lower_rank(flat: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """A checkpoint's flat tensors with all "unet." pairs at this rank, and the mean share kept."""
    smaller, shares = dict(flat), []
    for key in flat:
        if key.startswith("unet.") and key.endswith(".down"):
            stem = key.removesuffix(".down")
            whole = LowRank(flat[f"{stem}.down"].float(), flat[f"{stem}.up"].float())
            pair, share = truncate(whole, rank)
            smaller[f"{stem}.down"], smaller[f"{stem}.up"] = pair.down, pair.up
            shares.append(share)
    return smaller, sum(shares) / len(shares)


def shrink(source: Path, target: Path, rank: int) -> str:
    """Write `target` in single-file layout; a line that says what was written.

    The run in the header gets the new rank, so that training can go on from the file (--init).
    """
    if not 1 <= rank <= MOST_RANK:
        raise ValueError(f"--rank is {rank}, expected 1 to {MOST_RANK}")
    config, flat = checkpoint.read(source)
    header = checkpoint.header_of(source)
    smaller, kept = lower_rank(flat, rank)
    if "run" in header:
        run = RunConfig.from_header(header, source.name)
        adapter = dataclasses.replace(run.adapter, rank=rank)
        header["run"] = dataclasses.replace(run, adapter=adapter).to_json()
        header["trained_rank"] = str(run.adapter.rank)
    header["energy_kept"] = f"{kept:.4f}"
    checkpoint.save_single(target, config, smaller, extra=header)
    return (
        f"{target.name}: rank {rank}, {100 * kept:.1f} % of the pairs' energy kept, "
        f"{target.stat().st_size / 1e6:.2f} MB"
    )
