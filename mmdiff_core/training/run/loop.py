"""The training loop on Hugging Face accelerate: one GPU, or DDP, FSDP, DeepSpeed by its launcher.

A model that it trains is called with a batch of examples, and returns {"loss": what is minimised,
any others: logged}: scalars, means over the batch, the same names in every call. It moves the
examples to its device, takes its randomness from `Example.index` and stays in the train or eval
mode it comes in. Buffers are not saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from torch import nn

from ..example import ExampleSource
from ..lock import Lock
from .batches import Batch, batches
from .config import LoopConfig
from .optimizer import Groups
from .process import StopRequest, process_as_it_was
from .progress import Progress
from .report import Report
from .run_state import LOCK_FILE
from .trainer import Export, Sample, Trainer


def fit(
    model: nn.Module,
    source: ExampleSource,
    config: LoopConfig,
    folder: Path,
    *,
    export: Export | None = None,
    sample: Sample | None = None,
    parameter_groups: Groups | None = None,
    resume: bool = True,
) -> Report:
    """Train the parameters of `model` that require gradients, in place.

    The run goes on from the newest state in `folder`.

    source            with `workers`, `batch` is called from that many other threads
    export            (trained weights by name, path, facts for a header): writes the adapter, with
                      every state; the weights are the average if `ema_decay` is on, and must not
                      be changed
    sample            (step, a folder): every `sample_every` steps, with the weights of `export`
    parameter_groups  (model, peak rate) -> the optimiser's groups, which hold each trained
                      parameter once
    resume            False: `folder` must not hold a state

    export and sample run on the main process only. SIGTERM and SIGINT end the run after the
    current step, with a state to go on from; a third one acts as before. Random generators are
    seeded and the model ends on accelerate's device (under FSDP and DeepSpeed it ends sharded);
    all else in the process is afterwards as it was.

    ValueError: config, model, source or folder do not fit, or another training uses the folder.
    RunError: damaged states, a full disk, numbers that are not finite.
    """
    lock = Lock(Path(folder) / LOCK_FILE, f"the folder {folder}")
    with lock, process_as_it_was(model), StopRequest() as stop:
        trainer = Trainer(model, config, Path(folder), parameter_groups, resume, lock)
        progress = Progress(trainer.accelerator, config, trainer.folder, trainer.step)
        order = batches(source, config, trainer.step, trainer.processes, trainer.process)
        with closing(progress), closing(order):
            _train(trainer, progress, order, stop, export, sample)
            return progress.report(stopped=trainer.step < config.steps)


def _train(
    trainer: Trainer,
    progress: Progress,
    order: Iterator[Batch],
    stop: StopRequest,
    export: Export | None,
    sample: Sample | None,
) -> None:
    """Train to the last step, or until `stop`."""
    config, stopping = trainer.config, False
    if trainer.step >= config.steps:
        trainer.save_adapter(trainer.weights(), export)
    while trainer.step < config.steps and not stopping:
        trainer.set_learning_rate()
        rows = []
        for _ in range(config.accumulate):
            with progress.clock("data"):
                batch = next(order)
            with progress.clock("model"):
                rows.append(trainer.backward(batch))
        with progress.clock("model"):
            metrics, stopping = trainer.measure(rows, stop.asked > 0)
        with progress.clock("optimizer"):
            trainer.update()
        last = stopping or trainer.step == config.steps
        progress.add(trainer.step, metrics, last)
        if last or trainer.step % config.save_every == 0:
            trainer.save(export)
        if sample and config.sample_every and trainer.step % config.sample_every == 0:
            trainer.sample(sample)
