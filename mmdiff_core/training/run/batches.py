"""The batches of a run, in the order that its steps ask for them.

Letters   s optimiser step · A micro-steps in it · a micro-step · P processes · p process · B batch
Examples  s, a, p sees number ((s A + a) P + p) B and the B - 1 after it: what a step sees does not
          depend on how it is split.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ..example import Example, ExampleSource
from .config import LoopConfig

Batch = tuple[Example, ...]


def batches(
    source: ExampleSource, config: LoopConfig, step: int, processes: int, process: int
) -> Iterator[Batch]:
    """One process's batches from `step` to the last step.

    With `config.workers`, so many threads prepare the next ones ahead.
    """
    size = config.batch

    def load(start: int) -> Batch:
        batch = source.batch(start, size)
        if len(batch) != size:
            raise ValueError(
                f"the source gave {len(batch)} examples from number {start} on, expected {size}"
            )
        return batch

    micro_steps = range(step * config.accumulate, config.steps * config.accumulate)
    starts = iter([(m * processes + process) * size for m in micro_steps])
    if not config.workers:
        yield from map(load, starts)
        return
    with ThreadPoolExecutor(config.workers) as pool:
        ahead = deque(pool.submit(load, start) for start in islice(starts, config.workers + 1))
        try:
            while ahead:
                ready = ahead.popleft()
                ahead.extend(pool.submit(load, start) for start in islice(starts, 1))
                yield ready.result()
        finally:
            pool.shutdown(cancel_futures=True)
