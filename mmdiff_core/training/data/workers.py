"""Processes that make a run's batches ahead, where one process cannot keep up with a GPU."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from ..example import Example, ExampleSource

Make = Callable[[int, int], Any]

_make: list[Make] = []  # of this worker


class MadeAhead:
    """A source whose batches other processes make; they end with this object.

    `batch` waits for one process: called from several threads (`loop.workers`), the processes work
    side by side.

    source     gives single examples, in this process
    processes  from 1
    make       (start, size) -> what a process sends; picklable. None = `source.batch`
    finish     makes the batch of it, in this process; None = it is the batch
    """

    def __init__(
        self,
        source: ExampleSource,
        processes: int,
        make: Make | None = None,
        finish: Callable[[Any], tuple[Example, ...]] | None = None,
    ):
        self.source, self._finish = source, finish
        self._pool = ProcessPoolExecutor(
            processes,
            mp_context=get_context("spawn"),
            initializer=_start,
            initargs=(make or source.batch,),
        )

    def example(self, index: int) -> Example:
        """The example of that number."""
        return self.source.example(index)

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        """Examples start..start+size."""
        made = self._pool.submit(_call, start, size).result()
        return made if self._finish is None else self._finish(made)

    def close(self) -> None:
        """End the processes; batches that are not begun are dropped."""
        self._pool.shutdown(cancel_futures=True)


def _start(make: Make) -> None:
    # Ctrl-C and `timeout` signal the whole group; the run still takes batches while it stops
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _make.append(make)


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _call(start: int, size: int) -> Any:
    return _make[0](start, size)
