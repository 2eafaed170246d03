"""The process of a run: accelerate set up for it, signals that stop it, all restored after it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn

from .config import LoopConfig
from .errors import RunError

log = logging.getLogger(__name__)

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
# what accelerate sets on a model
PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")


def accelerator_for(config: LoopConfig, folder: Path) -> Accelerator:
    """accelerate as `config` and the launcher ask for. ValueError for what is impossible here."""
    # the plugin, since `accelerate launch` overrules the plain number by the environment
    plugin = GradientAccumulationPlugin(num_steps=config.accumulate, sync_with_dataloader=False)
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        project_dir=str(folder),
        log_with=_tracker(config.tracker),
        gradient_accumulation_plugin=plugin,
        kwargs_handlers=[ddp],
    )
    kind, launched = accelerator.distributed_type, int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes and kind != DistributedType.DEEPSPEED:
        raise ValueError(
            f"launched as {launched} processes, but accelerate sees {accelerator.num_processes}: "
            "each would train alone in the same folder. Without GPUs, launch with torchrun and set "
            "ACCELERATE_USE_CPU=true."
        )
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            'mixed_precision is "fp16", which needs a GPU; this device is the CPU. Use "bf16" or '
            '"no".'
        )
    if kind in SHARDED:
        _check_sharded(config, kind)
    if kind == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator, config)
    return accelerator


def _configure_deepspeed(accelerator: Accelerator, config: LoopConfig) -> None:
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = config.batch
    settings["gradient_accumulation_steps"] = config.accumulate
    settings["gradient_clipping"] = config.clip_norm
    # without it ZeRO 3 fails at its first state
    settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True


def _check_sharded(config: LoopConfig, kind: DistributedType) -> None:
    """ValueError for what needs the whole model in one process: there it would be wrong."""
    reasons = {
        "ema_decay": "the average of sharded weights",
        "sample_every": "sampling from a sharded model",
    }
    for field, what in reasons.items():
        if getattr(config, field):
            raise ValueError(
                f"{field} is {getattr(config, field)}: {what} is not supported under {kind.value}; "
                "set it to 0, or use DDP"
            )
    if config.optimizer == "muon":
        raise ValueError(
            'optimizer is "muon", which needs whole matrices: not supported under '
            f'{kind.value}; set "adamw", or use DDP'
        )


def _tracker(name: str | None) -> str | None:
    """The tracker that was asked for; None if tensorboard is not installed."""
    if name == "tensorboard" and name not in map(str, get_available_trackers()):
        log.warning(
            "tensorboard is not installed: metrics go to metrics.jsonl only (pip install "
            "tensorboard, or set tracker to null)"
        )
        return None
    return name


def on_main(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Do `work` on the main process while the others wait. Its error ends all of them."""
    error = None
    if accelerator.is_main_process:
        try:
            work()
        except Exception as caught:  # raised below, once the others know
            error = caught
    failed = torch.tensor(float(error is not None), device=accelerator.device)
    if error is None and float(accelerator.reduce(failed)):
        raise RunError("the main process failed; its own message says why")
    if error is not None:
        accelerator.reduce(failed)
        raise error


class StopRequest:
    """Counts SIGTERM and SIGINT while open.

    From the third on they act as before: a launcher may send each of the two. Outside the main
    thread Python accepts no signal handlers; there they are left as they are.
    """

    def __init__(self) -> None:
        self.asked, self._before = 0, {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        if self.asked > 2:
            self.__exit__()
            signal.raise_signal(number)


@contextmanager
def process_as_it_was(model: nn.Module) -> Iterator[None]:
    """Turn gradients on inside, also for a caller in inference mode, and restore all after it.

    Afterwards grad mode, accelerate's shared state, the process group and the model's forward are
    as they were: what was made inside is undone, what was there stays.
    """
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before, attributes, grouped = [*map(dict, shared)], dict(vars(model)), _grouped()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
        if _grouped() and not grouped:
            dist.barrier()
            dist.destroy_process_group()
    finally:
        for state, values in zip(shared, before):
            state.clear()
            state.update(values)
        for name in PREPARED:
            vars(model).pop(name, None)
            if name in attributes:
                vars(model)[name] = attributes[name]
        model.zero_grad(set_to_none=True)


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
