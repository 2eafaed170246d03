"""The process a run lives in: accelerate set up for it, signals that ask it to stop, and everything as it was afterwards."""
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

from .run_state import LoopConfig, RunError

log = logging.getLogger(__name__)

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")      # what accelerate sets on a model


def accelerator_for(config: LoopConfig, folder: Path) -> Accelerator:
    """accelerate as `config` and the launcher say. ValueError for what cannot be had here."""
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, project_dir=str(folder), log_with=_tracker(config.tracker),
        # not by number: that one is overruled by what `accelerate launch` puts into the environment
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulate, sync_with_dataloader=False),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    kind, launched = accelerator.distributed_type, int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes and kind != DistributedType.DEEPSPEED:
        raise ValueError(
            f"launched as {launched} processes, but accelerate sees {accelerator.num_processes}: each would train alone in the "
            "same folder. Without GPUs, launch with torchrun and set ACCELERATE_USE_CPU=true."
        )
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError('mixed_precision is "fp16", which needs a GPU; this device is the CPU. Use "bf16" or "no".')
    if kind in SHARDED:
        _check_sharded(config, kind)
    if kind == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings |= {"train_micro_batch_size_per_gpu": config.batch, "gradient_accumulation_steps": config.accumulate,
                     "gradient_clipping": config.clip_norm}
        settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True   # else ZeRO 3 fails at its first state
    return accelerator


def _check_sharded(config: LoopConfig, kind: DistributedType) -> None:
    """No process has the whole model there, so what needs it whole is refused rather than wrong."""
    for field, why in (("ema_decay", "the average of sharded weights"), ("sample_every", "sampling from a sharded model")):
        if getattr(config, field):
            raise ValueError(f"{field} is {getattr(config, field)}: {why} is not supported under {kind.value}; set it to 0, or use DDP")
    if config.optimizer == "muon":
        raise ValueError(f'optimizer is "muon", which needs whole matrices: not supported under {kind.value}; set "adamw", or use DDP')


def _tracker(name: str | None) -> str | None:
    """The tracker that was asked for, unless it is known but not installed."""
    if name == "tensorboard" and name not in map(str, get_available_trackers()):
        log.warning("tensorboard is not installed: metrics go to metrics.jsonl only (pip install tensorboard, or set tracker to null)")
        return None
    return name


def on_main(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Do `work` on the main process while the others wait. Its error ends all of them, instead of leaving them waiting."""
    error = None
    if accelerator.is_main_process:
        try:
            work()
        except Exception as caught:         # raised below, once the others know
            error = caught
    failed = torch.tensor(float(error is not None), device=accelerator.device)
    if error is None and float(accelerator.reduce(failed)):
        raise RunError("the main process failed; its own message says why")
    if error is not None:
        accelerator.reduce(failed)
        raise error


class StopRequest:
    """Counts SIGTERM and SIGINT while open. From the third on they act as before: a launcher may send each of two.

    Outside the main thread Python takes no signal handlers; there they are left as they are.
    """

    def __init__(self) -> None:
        self.asked, self._before = 0, {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
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
    """Gradients are on inside, also for a caller in inference mode. Afterwards grad mode, accelerate's shared state, the
    process group and the model's forward are as they were: what was made inside is undone, what was there stays."""
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before, attributes, grouped = [dict(state) for state in shared], dict(vars(model)), _grouped()
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
        vars(model).update({name: attributes[name] for name in PREPARED if name in attributes})
        model.zero_grad(set_to_none=True)


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
