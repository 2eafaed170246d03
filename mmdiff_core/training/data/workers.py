"""Processes that make a run's batches ahead, where one process cannot keep up with a GPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
Make = Callable[[int, int], T]

_make: list[Make] = []  # of this worker


class Workers(Generic[T]):
    """Calls `make(start, size)` in one of several processes and waits for the result.

    Call it from several threads (`loop.workers`), so that the processes work side by side. They
    end with this object.

    make       picklable; what it returns must not depend on the process
    processes  from 1
    """

    def __init__(self, make: Make, processes: int):
        self._pool = ProcessPoolExecutor(
            processes, mp_context=get_context("spawn"), initializer=_start, initargs=(make,)
        )

    def __call__(self, start: int, size: int) -> T:
        return self._pool.submit(_call, start, size).result()

    def close(self) -> None:
        """End the processes; batches that are not begun are dropped."""
        self._pool.shutdown(cancel_futures=True)


def _start(make: Make) -> None:
    torch.set_num_threads(1)
    _make.append(make)


def _call(start: int, size: int) -> T:
    return _make[0](start, size)
