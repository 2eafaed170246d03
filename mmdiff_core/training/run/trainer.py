"""Model, optimiser and average under accelerate, at a step.

Letters   s optimiser step · A micro-steps in it · a micro-step · P processes · p process · B batch
          K loss terms
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor, nn

from ..example import Example
from ..lock import Lock
from .config import LoopConfig
from .ema import Ema
from .errors import RunError
from .optimizer import Groups, learning_rate_factor, optimizer_for, trained_parameters
from .process import SHARDED, accelerator_for, on_main
from .report import Metrics, as_text
from .run_state import RunStates, State, check_same_run, load_into

log = logging.getLogger(__name__)

Export = Callable[[Mapping[str, Tensor], Path, dict], None]
Sample = Callable[[int, Path], None]

# of fp16's loss scale: where gradients still overflow there, the scale is not the reason
SMALLEST_SCALE = 1e-3


class Trainer:
    """A model in training. All processes call its methods together."""

    def __init__(
        self,
        model: nn.Module,
        config: LoopConfig,
        folder: Path,
        groups: Groups | None,
        resume: bool,
        lock: Lock,
    ) -> None:
        """`lock` is of the folder; the main process takes it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config, self.folder = config, folder
        self.states = RunStates(folder, config.keep_last)
        self.accelerator = accelerator_for(config, folder)
        self.processes = self.accelerator.num_processes
        self.process = self.accelerator.process_index
        self.main = self.accelerator.is_main_process
        on_main(self.accelerator, lock.acquire)
        self.sharded = self.accelerator.distributed_type in SHARDED
        set_seed(config.seed)
        self.trained = trained_parameters(model)
        optimizer = optimizer_for(model, self.trained, config, groups)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.facts = self._facts(optimizer)
        self.step, self.names, state = 0, [], self._newest(resume)
        if state and not self.sharded:
            load_into(self.trained, state.tensors("weights"), state.path.name)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        averaged = config.ema_decay and self.main
        self.ema = Ema(self.trained, config.ema_decay) if averaged else None
        if state:
            self._go_on(state)

    def _facts(self, optimizer: torch.optim.Optimizer) -> dict:
        """What a state says about its run."""
        groups = []
        for group in optimizer.param_groups:
            rates = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
            groups.append({"parameters": len(group["params"]), **rates})
        sharding = self.accelerator.distributed_type.value if self.sharded else None
        told = {"processes": self.processes, "groups": groups, "sharding": sharding}
        return self.config.to_dict() | told

    # ------------------------------------------------------------ resuming
    def _newest(self, resume: bool) -> State | None:
        state = self.states.newest()
        if state is None:
            if self.main and any(self.folder.glob("state-*")):
                log.warning("%s holds no finished state: starting at step 0", self.folder)
            return None
        if not resume:
            raise ValueError(
                f"{self.folder} holds {state.path.name}, and resume is off: choose an empty "
                "folder, or resume"
            )
        check_same_run(state.facts, self.facts, state.path.name)
        log.info("going on from %s, to step %d", state.path.name, self.config.steps)
        return state

    def _go_on(self, state: State) -> None:
        """Restore optimiser, loss scaler and average; under FSDP and DeepSpeed the weights too."""
        self.step = state.facts["step"]
        if self.sharded:
            self.accelerator.load_state(str(state.path / "shards"))
            return
        saved = state.optimizer()
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.accelerator.scaler and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        if self.ema:
            self.ema.load(state.tensors("ema"))

    # ------------------------------------------------------------ one step
    def set_learning_rate(self) -> None:
        """Set every group's rate of this step."""
        factor = learning_rate_factor(self.step, self.config)
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            group["lr"] = peak * factor

    def backward(self, batch: Sequence[Example]) -> Tensor:
        """Accumulate the gradients of one batch; its losses in the order of their names [K]."""
        with self.accelerator.accumulate(self.model):
            terms = self._checked(self.model(batch))
            self.accelerator.backward(terms["loss"])
        return torch.stack([terms[name].detach().float().reshape(()) for name in self.names])

    def _checked(self, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The model's losses, if they are what `fit` asks for."""
        if "loss" not in terms or any(term.numel() != 1 for term in terms.values()):
            shapes = {name: tuple(term.shape) for name, term in terms.items()}
            raise ValueError(f"the model gave {shapes}, expected scalars, one of them 'loss'")
        self.names = self.names or sorted(terms)
        if sorted(terms) != self.names:
            raise ValueError(
                f"the model gave the losses {sorted(terms)}, before {self.names}: they must be the "
                "same in every call"
            )
        return terms

    def measure(self, rows: list[Tensor], asked: bool) -> tuple[Metrics, bool]:
        """Clip the gradient and gather the metrics: the step's one wait for the device.

        rows   losses [K] of the A micro-steps
        asked  whether this process was asked to stop

        Returns the step's metrics over all processes, checked, and whether any of them was asked
        to stop.
        """
        limit = self.config.clip_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        marks = torch.full((len(rows), 1), float(asked), device=rows[0].device)
        table = self.accelerator.gather(torch.cat([torch.stack(rows), marks], dim=1)).cpu()
        losses, stopping = table[:, :-1], bool(table[:, -1].any())  # [P A  K]
        norm = None if norm is None else float(norm)
        metrics = dict(zip(self.names, losses.mean(0).tolist()))
        metrics |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "gradient_norm": norm}
        if not losses.isfinite().all():
            raise RunError(self._not_finite(losses, metrics))
        if norm is not None and not math.isfinite(norm):
            if not self._overflowed():
                raise RunError(self._not_finite(losses, metrics))
            metrics["gradient_norm"] = None
        return metrics, stopping

    def _overflowed(self) -> bool:
        """Whether fp16's loss scale explains gradients that are not finite.

        The step is then skipped and the scale halved.
        """
        scaler = self.accelerator.scaler
        return scaler.get_scale() > SMALLEST_SCALE if scaler else self.optimizer.step_was_skipped

    def _not_finite(self, losses: Tensor, metrics: Metrics) -> str:
        A, P, B = self.config.accumulate, self.processes, self.config.batch
        starts = []
        for row in range(P * A):
            if not losses[row].isfinite().all():
                p, a = divmod(row, A)
                starts.append(((self.step * A + a) * P + p) * B)
        length = B if starts else A * P * B
        starts = sorted(starts) or [self.step * A * P * B]
        examples = ", ".join(f"{start}..{start + length - 1}" for start in starts)
        newest = next((path.name for path in self.states.paths()), "none was saved yet")
        return (
            f"step {self.step + 1} is not finite: {as_text(metrics)}; examples {examples}. The "
            f"newest good state is kept: {newest}. Look at these examples; if they are right, try "
            "a lower learning_rate, more warmup_steps, a smaller clip_norm, or mixed_precision "
            '"bf16" or "no".'
        )

    def update(self) -> None:
        """Take the optimiser step."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema:
            self.ema.update(self.step)

    # ------------------------------------------------------------ saving
    def weights(self) -> dict[str, Tensor]:
        """The trained weights, whole; empty but on the main process."""
        whole = self.trained
        if self.sharded:
            whole = self.accelerator.get_state_dict(self.model)
        return {name: whole[name] for name in self.trained} if self.main else {}

    def save(self, export: Export | None) -> None:
        """Save a state, then the adapter."""
        weights = self.weights()
        if self.sharded:
            on_main(self.accelerator, lambda: self.states.begin(self.step))
            with self.states.explained(self.step):
                self.accelerator.save_state(str(self.states.part(self.step) / "shards"))
            self.accelerator.wait_for_everyone()
        on_main(self.accelerator, lambda: self._commit(weights))
        self.save_adapter(weights, export)

    def _commit(self, weights: Mapping[str, Tensor]) -> None:
        scaler, optimizer = self.accelerator.scaler, None
        if not self.sharded:
            saved = scaler.state_dict() if scaler else None
            optimizer = {"optimizer": self.optimizer.state_dict(), "scaler": saved}
        average = {"ema": self.ema.average} if self.ema else {}
        self.states.commit(self.step, {"weights": weights} | average, optimizer, self.facts)

    def save_adapter(self, weights: Mapping[str, Tensor], export: Export | None) -> None:
        """Call `export` on the main process."""
        if export:
            on_main(self.accelerator, lambda: self._export(weights, export))

    def _export(self, weights: Mapping[str, Tensor], export: Export) -> None:
        path = self.folder / "adapter.safetensors"
        header = {
            "training_step": str(self.step),
            "training_weights": "average" if self.ema else "last",
            "training_config": json.dumps(self.config.to_dict()),
        }
        try:
            export(self.ema.average if self.ema else weights, path, header)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path} could not be written: {error}. The state of step {self.step} is saved: "
                "make room or the folder writable, then start again with the same folder."
            ) from error

    def sample(self, sample: Sample) -> None:
        """Call `sample` on the main process, with the weights that `export` gets in the model."""

        def work() -> None:
            path = self.folder / "samples" / f"{self.step:08d}"
            path.mkdir(parents=True, exist_ok=True)
            with torch.no_grad(), self.ema.applied() if self.ema else nullcontext():
                sample(self.step, path)

        on_main(self.accelerator, work)
