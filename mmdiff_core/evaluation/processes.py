"""This process among those that a launcher started: torchrun and `accelerate launch` say it in
RANK, WORLD_SIZE and LOCAL_RANK."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

LONGEST = timedelta(days=7)  # that a process waits for the slowest one


class Processes:
    """rank and world of this process, and a place where all wait for each other.

    device  what torch calls it, as "cuda:1"; None = this process's GPU, else the CPU
    """

    def __init__(self, device: str | None = None) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        local = os.environ.get("LOCAL_RANK", str(self.rank))
        found = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device or found)
        self._mine = False

    @property
    def main(self) -> bool:
        """Whether this one writes the report."""
        return self.rank == 0

    def __enter__(self) -> Processes:
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", rank=self.rank, world_size=self.world, timeout=LONGEST)
            self._mine = True
        return self

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def __exit__(self, *_: object) -> None:
        if self._mine:
            dist.destroy_process_group()
