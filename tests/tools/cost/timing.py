"""Samplings and the time of their model calls."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from mmdiff_core.host.run import Run

from .arm import Arm
from .counting import Counts, OperationCounter, flop_counter


@dataclass(frozen=True)
class Span:
    """From when to when a model call ran, and its seconds on all cores of the CPU together."""

    start: Any
    end: Any
    busy: float


def busy_of(spans: Sequence[Span]) -> list[float]:
    return [span.busy for span in spans]


@dataclass(frozen=True)
class Kept:
    """Bytes that the pack keeps during a run: of the subjects' K and V, and of the text."""

    subjects: int = 0
    text: int = 0


def kept_by(options: dict[str, Any]) -> Kept:
    """What the runs in these transformer_options keep."""
    runs = [run for run in options.values() if isinstance(run, Run)]
    pairs = [p for run in runs for state in run.states.values() for p in state.keys.values()]
    text = sum(run.texts.bytes for run in runs if run.texts is not None)
    return Kept(sum(tensor.nbytes for pair in pairs for tensor in pair), text)


class Meter:
    """Sees each model call of a sampling from outside, with all that a pack adds to it."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.begin()

    def begin(
        self, probes: Sequence[contextlib.AbstractContextManager] = (), paired: bool = False
    ) -> None:
        """Forget the last sampling.

        Step i of the next runs inside probes[i]; when `paired`, also without the pack.
        """
        self.probes, self.paired = list(probes), paired
        self.started: Any = None
        self.steps: list[Span] = []
        self.bare: list[Span] = []
        self.kept = Kept()

    def now(self) -> Any:
        """A point in time, on a GPU in the GPU's own queue so that taking it does not disturb."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.cuda else end - start

    def lengths(self, spans: Sequence[Span]) -> list[float]:
        return [self.seconds(span.start, span.end) for span in spans]

    def on_run(self, executor, *args, **kwargs):
        self.started = self.now()
        return executor(*args, **kwargs)

    def on_step(self, executor, x, timestep, model_options, seed):
        number = len(self.steps)
        if self.paired and number % 2 == 0:
            self.call_bare(executor, x, timestep, model_options, seed)
        with self.probes[number] if number < len(self.probes) else contextlib.nullcontext():
            out = self.call(self.steps, executor, x, timestep, model_options, seed)
        if self.paired and number % 2:
            self.call_bare(executor, x, timestep, model_options, seed)
        self.kept = kept_by(model_options["transformer_options"])
        return out

    def call_bare(self, executor, x, timestep, model_options, seed) -> None:
        """The same model call without what a pack adds to it, or keeps of its text."""
        guider = executor.class_obj
        conds = guider.conds
        guider.conds = without_kept_text(conds)
        try:
            self.call(self.bare, executor, x, timestep, without_packs(model_options), seed)
        finally:
            guider.conds = conds

    def call(self, spans: list[Span], executor, *args):
        """One model call, and when it was."""
        start, busy = self.now(), time.process_time()
        out = executor(*args)
        spans.append(Span(start, self.now(), time.process_time() - busy))
        return out


def without_packs(model_options: dict[str, Any]) -> dict[str, Any]:
    """The options of a model call without replaced layers and without wrappers around the UNet."""
    options = dict(model_options["transformer_options"])
    options.pop("patches_replace", None)
    options["wrappers"] = dict(options.get("wrappers", {}))
    options["wrappers"].pop(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, None)
    return {**model_options, "transformer_options": options}


def without_kept_text(conds: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The processed conds with texts that the host joins anew at every step."""
    return {kind: list(map(plain_text, conds[kind])) for kind in conds}


def plain_text(cond: dict) -> dict:
    text = comfy.conds.CONDCrossAttn(cond["model_conds"]["c_crossattn"].cond)
    return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": text}}


@dataclass(frozen=True)
class Timing:
    """One sampling: seconds before its first step, of each step with the pack and bare, CPU time
    too, peak memory.
    """

    before: float
    steps: list[float]
    bare: list[float]
    busy: list[float]
    bare_busy: list[float]
    peak: int


def sample(arm: Arm, size: int, steps: int, cfg: float) -> Tensor:
    """Euler over the normal schedule."""
    noise = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(
        arm.model.get_model_object("model_sampling"), "normal", steps
    )
    return comfy.sample.sample_custom(
        arm.model,
        noise,
        cfg,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        arm.positive,
        arm.negative,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=0,
    )


def time_arm(arm: Arm, meter: Meter, args: argparse.Namespace, paired: bool = True) -> Timing:
    """One sampling, timed."""
    meter.begin(paired=paired)
    if meter.cuda:
        comfy.model_management.load_model_gpu(arm.model)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    sample(arm, args.size, args.steps, args.cfg)
    if meter.cuda:
        torch.cuda.synchronize()
    first = meter.bare[0] if paired else meter.steps[0]
    return Timing(
        before=meter.seconds(meter.started, first.start),
        steps=meter.lengths(meter.steps),
        bare=meter.lengths(meter.bare),
        busy=busy_of(meter.steps),
        bare_busy=busy_of(meter.bare),
        peak=torch.cuda.max_memory_allocated() if meter.cuda else 0,
    )


def count_arm(arm: Arm, meter: Meter, size: int, cfg: float) -> Counts:
    """A sampling of three steps: operations of the first and of the second, FLOP of the third."""
    first, second, flop = OperationCounter(), OperationCounter(), flop_counter()
    meter.begin([first, second, flop])
    sample(arm, size, 3, cfg)
    return Counts(
        dict(second.operations),
        second.kernels.total(),
        second.waits.total(),
        flop.get_total_flops(),
        first.operations.total(),
        dict(+first.waits),
    )


def time_all(
    plain: Arm, arms: Sequence[Arm], meter: Meter, args: argparse.Namespace
) -> tuple[list[Timing], list[list[Timing]]]:
    """Timings of the plain model's own samplings and of each arm's, one of each in a repeat."""
    plains, timings = [], [[] for _ in arms]
    for repeat in range(args.repeats):
        say(f"repeat {repeat + 1} of {args.repeats}")
        plains.append(time_arm(plain, meter, args, paired=False))
        for found, arm in zip(timings, arms):
            found.append(time_arm(arm, meter, args))
    return plains, timings


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
