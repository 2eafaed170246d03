"""This process among those that a launcher started: torchrun and `accelerate launch` say it in
RANK, WORLD_SIZE and LOCAL_RANK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

LONGEST = timedelta(days=7)  # that a process waits for the slowest one

Work = TypeVar("Work")


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
        """Whether this one writes what there is only one of."""
        return self.rank == 0

    @property
    def prefix(self) -> str:
        """What a line of progress begins with; nothing for a single process."""
        return f"process {self.rank}: " if self.world > 1 else ""

    def share(self, work: Sequence[Work]) -> list[Work]:
        """This process's part of the work; the parts do not overlap and are all of it."""
        return list(work[self.rank :: self.world])

    def __enter__(self) -> Processes:
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", rank=self.rank, world_size=self.world, timeout=LONGEST)
            self._mine = True
        return self

    def wait(self) -> None:
        """Until all processes are here. ConnectionError where one of them has ended."""
        if self.world == 1:
            return
        try:
            dist.barrier()
        except RuntimeError as error:  # gloo's, where another process is gone
            raise ConnectionError(
                "another process ended; its own message says why. Start again to go on"
            ) from error

    def __exit__(self, *_: object) -> None:
        if self._mine:
            dist.destroy_process_group()
