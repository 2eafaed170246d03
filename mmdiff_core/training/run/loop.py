"""One training loop on Hugging Face accelerate: one GPU, or DDP, FSDP, DeepSpeed by `accelerate launch`. Knows no model
and no host.

Letters   s optimiser step · A micro-steps in it · a micro-step · P processes · p process · B batch · K loss terms
Examples  s, a, p sees number ((s A + a) P + p) B and the B - 1 after it: what a step sees does not depend on how it is split.
"""
from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor, nn

from .ema import Ema
from ..example import Example, ExampleSource
from .optimizer import Groups, optimizer_for
from .process import SHARDED, StopRequest, accelerator_for, on_main, process_as_it_was
from .progress import Metrics, Progress, Report
from .run_state import LoopConfig, RunError, RunStates, State, check_same_run, load_into

log = logging.getLogger(__name__)

Export = Callable[[Mapping[str, Tensor], Path, dict], None]
Sample = Callable[[int, Path], None]
SMALLEST_SCALE = 1e-3       # of fp16's loss: where gradients still overflow there, it is not the scale's fault


def fit(model: nn.Module, source: ExampleSource, config: LoopConfig, folder: Path, *, export: Export | None = None,
        sample: Sample | None = None, parameter_groups: Groups | None = None, resume: bool = True) -> Report:
    """Train the parameters of `model` that require gradients, in place; go on from the newest state in `folder`.

    model             model(batch) -> {"loss": what is minimised, any others: logged}; scalars, means over the batch, the same
                      names in every call. It moves the examples to its device, takes its randomness from `Example.index`
                      and stays in the train or eval mode it comes in. Buffers are not saved.
    source            with `workers`, `batch` is called from that many other threads
    export            (trained weights by name, path, facts for a header): writes the adapter, with every state; the weights
                      are the average if `ema_decay` is on, and not its to change
    sample            (step, a folder): every `sample_every` steps, with the weights of `export` in the model
    parameter_groups  (model, peak rate) -> the optimiser's groups, which hold each trained parameter once
    resume            False: `folder` must not hold a state

    export and sample run on the main process only. SIGTERM and SIGINT end the run after the current step, with a state to go
    on from; a third one acts as before. Random generators are seeded and the model ends on accelerate's device (under FSDP and
    DeepSpeed it ends sharded); all else in the process is afterwards as it was.
    ValueError: config, model, source or folder do not fit. RunError: damaged states, a full disk, numbers that are not finite.
    """
    with process_as_it_was(model), StopRequest() as stop:
        run = _Run(model, config, Path(folder), parameter_groups, resume)
        progress = Progress(run.accelerator, config, run.folder, run.step)
        with closing(progress), closing(run.batches(source)) as batches:
            clock, stopping = progress.clock, False
            if run.step >= config.steps:
                run.save_adapter(run.weights(), export)
            while run.step < config.steps and not stopping:
                run.set_learning_rate()
                rows = []
                for _ in range(config.accumulate):
                    with clock("data"):
                        batch = next(batches)
                    with clock("model"), run.accelerator.accumulate(run.model):
                        terms = run.checked(run.model(batch))
                        run.accelerator.backward(terms["loss"])
                        rows.append(run.row(terms))
                with clock("model"):
                    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), config.clip_norm or math.inf)
                    metrics, stopping = run.measured(rows, norm, stop.asked > 0)    # the step's one wait for the device
                with clock("optimizer"):
                    run.optimizer.step()
                    run.optimizer.zero_grad()
                    run.step += 1
                    if run.ema:
                        run.ema.update(run.step)
                last = stopping or run.step == config.steps
                progress.add(run.step, metrics, last)
                if last or run.step % config.save_every == 0:
                    run.save(export)
                if sample and config.sample_every and run.step % config.sample_every == 0:
                    run.sample(sample)
            return progress.report(stopped=run.step < config.steps)


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Share of the peak rate at optimiser step `step`, counted from 0: a line up, then flat or half a cosine down."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_fraction + (1 - config.final_fraction) * (1 + math.cos(math.pi * done)) / 2


class _Run:
    """Model, optimiser and average under accelerate, at a step. All processes call its methods together."""

    def __init__(self, model: nn.Module, config: LoopConfig, folder: Path, groups: Groups | None, resume: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config, self.folder, self.states = config, folder, RunStates(folder, config.keep_last)
        self.accelerator = accelerator_for(config, folder)
        self.main, self.sharded = self.accelerator.is_main_process, self.accelerator.distributed_type in SHARDED
        set_seed(config.seed)
        self.trained = _trained(model)
        optimizer = optimizer_for(model, self.trained, config, groups)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        told = [{"parameters": len(g["params"]), "lr": g["lr"], "weight_decay": g["weight_decay"]} for g in optimizer.param_groups]
        self.facts = config.to_dict() | {"processes": self.accelerator.num_processes, "groups": told,
                                         "sharding": self.accelerator.distributed_type.value if self.sharded else None}
        self.step, self.names, state = 0, [], self._newest(resume)
        if state and not self.sharded:
            load_into(self.trained, state.tensors("weights"), state.path.name)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.ema = Ema(self.trained, config.ema_decay) if config.ema_decay and self.main else None
        if state:
            self._go_on(state)

    def _newest(self, resume: bool) -> State | None:
        state = self.states.newest()
        if state is None:
            if self.main and any(self.folder.glob("state-*")):
                log.warning("%s holds no finished state: starting at step 0", self.folder)
            return None
        if not resume:
            raise ValueError(f"{self.folder} holds {state.path.name}, and resume is off: choose an empty folder, or resume")
        check_same_run(state.facts, self.facts, state.path.name)
        log.info("going on from %s, to step %d", state.path.name, self.config.steps)
        return state

    def _go_on(self, state: State) -> None:
        """Optimiser, loss scaler and average as they were; under FSDP and DeepSpeed the weights too."""
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

    def batches(self, source: ExampleSource) -> Iterator[tuple[Example, ...]]:
        """This process's batches from here to the last step, in order; threads prepare the next ones ahead."""
        size, P, p = self.config.batch, self.accelerator.num_processes, self.accelerator.process_index

        def load(start: int) -> tuple[Example, ...]:
            batch = source.batch(start, size)
            if len(batch) != size:
                raise ValueError(f"the source gave {len(batch)} examples from number {start} on, expected {size}")
            return batch

        micro_steps = range(self.step * self.config.accumulate, self.config.steps * self.config.accumulate)
        starts = iter([(m * P + p) * size for m in micro_steps])
        if not self.config.workers:
            yield from map(load, starts)
            return
        with ThreadPoolExecutor(self.config.workers) as pool:
            ahead = deque(pool.submit(load, start) for start in islice(starts, self.config.workers + 1))
            try:
                while ahead:
                    ready = ahead.popleft()
                    ahead.extend(pool.submit(load, start) for start in islice(starts, 1))
                    yield ready.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def set_learning_rate(self) -> None:
        factor = learning_rate_factor(self.step, self.config)
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            group["lr"] = peak * factor

    def checked(self, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The model's losses, if they are what `fit` asks for."""
        if "loss" not in terms or any(term.numel() != 1 for term in terms.values()):
            raise ValueError(f"the model gave {({n: tuple(t.shape) for n, t in terms.items()})}, expected scalars, one of them 'loss'")
        self.names = self.names or sorted(terms)
        if sorted(terms) != self.names:
            raise ValueError(f"the model gave the losses {sorted(terms)}, before {self.names}: they must be the same in every call")
        return terms

    def row(self, terms: Mapping[str, Tensor]) -> Tensor:
        """One micro-step's losses in the order of their names, [K]."""
        return torch.stack([terms[name].detach().float().reshape(()) for name in self.names])

    def measured(self, rows: list[Tensor], norm: Tensor | float | None, asked: bool) -> tuple[Metrics, bool]:
        """A rows [K], the gradient's norm and whether this process was asked to stop -> the step's metrics over all
        processes, checked, and whether any of them was."""
        marks = torch.full((len(rows), 1), float(asked), device=rows[0].device)
        table = self.accelerator.gather(torch.cat([torch.stack(rows), marks], dim=1)).cpu()     # [P A  K+1]
        losses, stopping = table[:, :-1], bool(table[:, -1].any())
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
        """Whether fp16's loss scale explains gradients that are not finite: the step is then skipped and the scale halved."""
        scaler = self.accelerator.scaler
        return scaler.get_scale() > SMALLEST_SCALE if scaler else self.optimizer.step_was_skipped

    def _not_finite(self, losses: Tensor, metrics: Metrics) -> str:
        A, P, B = self.config.accumulate, self.accelerator.num_processes, self.config.batch
        wrong = [divmod(row, A) for row in range(P * A) if not losses[row].isfinite().all()]
        starts = sorted(((self.step * A + a) * P + p) * B for p, a in wrong) or [self.step * A * P * B]
        length = B if wrong else A * P * B
        newest = next((path.name for path in self.states.paths()), "none was saved yet")
        return (
            f"step {self.step + 1} is not finite: {', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}; "
            f"examples {', '.join(f'{start}..{start + length - 1}' for start in starts)}. The newest good state is kept: {newest}. "
            "Look at these examples; if they are right, try a lower learning_rate, more warmup_steps, a smaller clip_norm, or "
            'mixed_precision "bf16" or "no".'
        )

    def weights(self) -> dict[str, Tensor]:
        """The trained weights, whole; nothing but on the main process."""
        whole = self.accelerator.get_state_dict(self.model) if self.sharded else self.trained
        return {name: whole[name] for name in self.trained} if self.main else {}

    def save(self, export: Export | None) -> None:
        """A state, then the adapter."""
        weights = self.weights()
        if self.sharded:
            on_main(self.accelerator, lambda: self.states.begin(self.step))
            with self.states.explained(self.step):
                self.accelerator.save_state(str(self.states.part(self.step) / "shards"))
            self.accelerator.wait_for_everyone()
        on_main(self.accelerator, lambda: self._commit(weights))
        self.save_adapter(weights, export)

    def _commit(self, weights: Mapping[str, Tensor]) -> None:
        scaler = self.accelerator.scaler
        optimizer = {"optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None}
        average = {"ema": self.ema.average} if self.ema else {}
        self.states.commit(self.step, {"weights": weights} | average, None if self.sharded else optimizer, self.facts)

    def save_adapter(self, weights: Mapping[str, Tensor], export: Export | None) -> None:
        if export:
            on_main(self.accelerator, lambda: self._export(weights, export))

    def _export(self, weights: Mapping[str, Tensor], export: Export) -> None:
        path = self.folder / "adapter.safetensors"
        header = {"training_step": str(self.step), "training_weights": "average" if self.ema else "last",
                  "training_config": json.dumps(self.config.to_dict())}
        try:
            export(self.ema.average if self.ema else weights, path, header)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path} could not be written: {error}. The state of step {self.step} is saved: make room or the folder "
                "writable, then start again with the same folder."
            ) from error

    def sample(self, sample: Sample) -> None:
        def work() -> None:
            path = self.folder / "samples" / f"{self.step:08d}"
            path.mkdir(parents=True, exist_ok=True)
            with torch.no_grad(), self.ema.applied() if self.ema else nullcontext():
                sample(self.step, path)

        on_main(self.accelerator, work)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name. ValueError if none does, or one cannot be trained well."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("no parameter of the model requires gradients: nothing to train")
    if made := [name for name, p in found.items() if p.is_inference()]:
        raise ValueError(f"{made[0]} was made in torch.inference_mode, as ComfyUI runs nodes: make the model in inference_mode(False)")
    if small := [name for name, p in found.items() if p.dtype not in (torch.float32, torch.float64)]:
        raise ValueError(
            f"{small[0]} is {found[small[0]].dtype}: trained weights must be float32, where small updates are not rounded away. "
            "For speed set mixed_precision."
        )
    return found
