"""A run on disk: how it is configured, and its states, each there whole or not at all.

A run's folder  state-00000500/   weights.safetensors, ema.safetensors, optimizer.pt, state.json (facts and checksums); under
                                  FSDP and DeepSpeed accelerate's shards/ (of the whole model) instead of optimizer.pt
                metrics.jsonl · adapter.safetensors · samples/ · tensorboard/    (written by `loop`)
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)

FORMAT, VERSION = "training-run", 1
FACTS = "state.json"
UNFINISHED = ".part"

# field -> (type, smallest, largest)
RANGES = {
    "steps": (int, 1, 10**9), "batch": (int, 1, 10**6), "accumulate": (int, 1, 10**6), "warmup_steps": (int, 0, 10**9),
    "save_every": (int, 1, 10**9), "keep_last": (int, 1, 10**6), "log_every": (int, 1, 10**9),
    "sample_every": (int, 0, 10**9), "workers": (int, 0, 256), "seed": (int, 0, 2**32 - 1),
    "learning_rate": (float, 1e-12, 10), "muon_rate": (float, 1e-6, 1e6), "final_fraction": (float, 0, 1), "weight_decay": (float, 0, 10),
    "clip_norm": (float, 0, 1e9), "ema_decay": (float, 0, 0.999999),
}
CHOICES = {"optimizer": ("adamw", "muon"), "schedule": ("cosine", "constant"), "mixed_precision": ("no", "bf16", "fp16")}
MAY_CHANGE = ("steps", "save_every", "keep_last", "log_every", "sample_every", "workers", "tracker")
SPLIT = ("batch", "accumulate", "processes")        # may change together: their product is what a step sees


class RunError(RuntimeError):
    """A run that cannot go on; the message says where it stopped, what is still good, and what to do."""


# ---------------------------------------------------------------- configuration

@dataclass(frozen=True)
class LoopConfig:
    """How a run trains. A field outside its range is a ValueError that names it.

    steps            optimiser steps of the whole run, from 1; if changed within a run, a cosine bends to the new last step
    batch            examples in one forward pass of one process, from 1
    accumulate       forward passes summed into one optimiser step, from 1
    optimizer        "adamw", or "muon": Muon for matrices beside AdamW for all else (torch 2.9 or newer; not sharded)
    learning_rate    AdamW's peak rate, above 0
    muon_rate        the matrices' rate under Muon in units of learning_rate, above 0
    betas            AdamW's two averages, the first also Muon's, each from 0 and below 1
    weight_decay     of AdamW and Muon, from 0
    warmup_steps     optimiser steps in which the rate rises from 0, from 0
    schedule         after the warm-up: "constant", or "cosine" down to the last step
    final_fraction   where the cosine ends, as a share of the peak, 0..1
    clip_norm        largest norm of the whole gradient, from 0; 0 = not clipped
    ema_decay        of the averaged weights, from 0 and below 1, typically 0.999..0.9999; 0 = no average
    mixed_precision  "no", "bf16" or "fp16"; the trained weights stay float32 (DeepSpeed makes the whole model of that type)
    seed             of Python's, NumPy's and torch's global generators, 0..2**32-1
    save_every       optimiser steps between two states on disk, from 1
    keep_last        newest states kept on disk, from 1; there must be room for one more while it is written
    log_every        optimiser steps between two lines of metrics, from 1; a line holds their mean
    sample_every     optimiser steps between two sample grids, from 0; 0 = none
    workers          threads that prepare batches ahead, 0..256; 0 = none
    tracker          accelerate's name of an experiment tracker, or None; metrics.jsonl is written in any case
    """

    steps: int
    batch: int
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    muon_rate: float = 4.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: str = "constant"
    final_fraction: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: str = "no"
    seed: int = 0
    save_every: int = 500
    keep_last: int = 2
    log_every: int = 10
    sample_every: int = 0
    workers: int = 1
    tracker: str | None = "tensorboard"

    def __post_init__(self) -> None:
        for name, (kind, low, high) in RANGES.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole or kind is float and isinstance(value, float)) or not low <= value <= high:
                a = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name} is {value!r}, expected {a} from {low} to {high}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {known}")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas!r}, expected two numbers from 0 and below 1")

    def to_dict(self) -> dict:
        """Plain values for json.dump; `from_dict` is the inverse."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def from_dict(cls, fields: Mapping) -> LoopConfig:
        """A dict as json.load gives it. ValueError names unknown and missing fields, and values out of range."""
        known = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(f"the training config has unknown fields {unknown}; known are {sorted(known)}")
        if missing := sorted(name for name, required in known.items() if required and name not in fields):
            raise ValueError(f"the training config lacks the fields {missing}")
        betas = fields.get("betas", cls.betas)
        return cls(**{**fields, "betas": tuple(betas) if isinstance(betas, list) else betas})


def check_same_run(saved: Mapping, now: Mapping, name: str) -> None:
    """Whether a run with the facts `now` continues the one saved: ValueError names each field, its old and new value. What a state of an
    older version does not tell had its default."""
    saved = {f.name: f.default for f in dataclasses.fields(LoopConfig)} | dict(saved)
    skip = {*MAY_CHANGE, "step", "files", "format", "version"}
    if math.prod(saved[field] for field in SPLIT) == math.prod(now[field] for field in SPLIT):
        skip |= {*SPLIT}
    changed = [f for f in sorted({*saved, *now} - skip) if saved.get(f) != now.get(f)]
    if changed:
        told = "; ".join(f"{field} was {saved.get(field)!r} and is now {now.get(field)!r}" for field in changed)
        raise ValueError(
            f"{name} was trained otherwise: {told}. Set the old values to go on with it, or choose a new folder. "
            f"Only {', '.join(MAY_CHANGE)} may change within a run, and {', '.join(SPLIT)} if their product stays."
        )


# ---------------------------------------------------------------- states

@dataclass(frozen=True)
class State:
    """One whole state on disk. `facts` is its state.json: step, processes, parameter groups and the config's fields."""

    path: Path
    facts: dict

    def tensors(self, name: str) -> dict[str, Tensor]:
        """`weights` or `ema`, on the CPU."""
        return load_file(self.path / f"{name}.safetensors")

    def optimizer(self) -> dict:
        """Optimiser and loss scaler, on the CPU."""
        return torch.load(self.path / "optimizer.pt", map_location="cpu", weights_only=True)


class RunStates:
    """The states in a run's folder, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Finished states, newest first."""
        return sorted((p for p in self.folder.glob("state-*") if p.name[6:].isdigit() and p.is_dir()), key=_step, reverse=True)

    def path(self, step: int) -> Path:
        return self.folder / f"state-{step:08d}"

    def part(self, step: int) -> Path:
        """Where a state is written before it gets its name."""
        return self.folder / f"{self.path(step).name}{UNFINISHED}"

    def newest(self) -> State | None:
        """The newest undamaged state; None if there never was one. RunError if all there are are damaged."""
        damaged: list[str] = []
        for path in self.paths():
            try:
                state = read_state(path)
            except RunError as error:
                damaged.append(str(error))
                continue
            if damaged:
                log.warning("%s. Going on from %s instead.", "; ".join(damaged), path.name)
            return state
        if damaged:
            raise RunError(
                f"no state in {self.folder} can be used: {'; '.join(damaged)}. Restore one from a copy, or choose a new folder."
            )
        return None

    def begin(self, step: int) -> Path:
        """An empty place for the state of this step."""
        part = self.part(step)
        with self.explained(step):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        return part

    def commit(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], optimizer: dict | None, facts: dict) -> None:
        """Write what is left to write, give the state its name in one move, and drop old ones. RunError if the disk fails."""
        with self.explained(step):
            part = self.part(step) if self.part(step).is_dir() else self.begin(step)
            for name, group in tensors.items():
                save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, part / f"{name}.safetensors")
            if optimizer is not None:
                torch.save(optimizer, part / "optimizer.pt")
            files = sorted(p for p in part.rglob("*") if p.is_file())
            sums = {p.relative_to(part).as_posix(): _checksum(p) for p in files}
            told = {"format": FORMAT, "version": VERSION, "step": step, "files": sums} | facts
            (part / FACTS).write_text(json.dumps(told, indent=1), encoding="utf-8")
            for path in [*files, part / FACTS]:
                _flush(path)
            _rename(part, self.path(step))
        self._prune(step)

    def _prune(self, step: int) -> None:
        """Keep the newest up to this step. Later ones are damaged: the run would have gone on from them."""
        earlier = [p for p in self.paths() if _step(p) <= step]
        for path in [*set(self.paths()) - set(earlier), *earlier[self.keep:], *self.folder.glob(f"state-*{UNFINISHED}")]:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def explained(self, step: int) -> Iterator[None]:
        """A failed write (safetensors and torch.save have errors of their own) becomes a RunError; the attempt is removed."""
        try:
            yield
        except RunError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(self.part(step), ignore_errors=True)
            last = next((p.name for p in self.paths()), None)
            good = f"{last} is untouched and training resumes from it" if last else "no earlier state was saved"
            raise RunError(
                f"the state of step {step} could not be written to {self.folder}: {error}. "
                f"{shutil.disk_usage(self.folder).free / 1e9:.1f} GB are free there. {good}. "
                "Make room or the folder writable, then start again with the same folder."
            ) from error


def read_state(path: Path) -> State:
    """A state whose every file is as it was written. RunError says which is not."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        found = {name: _checksum(path / name) for name in facts["files"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path.name} is damaged ({type(error).__name__}: {error})") from error
    if (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"{path.name} has the format {facts.get('format')!r} {facts.get('version')!r}, this version reads {FORMAT!r} {VERSION}"
        )
    if wrong := sorted(name for name, told in facts["files"].items() if found[name] != told):
        raise RunError(f"{path.name} is damaged ({', '.join(wrong)}: not the bytes that were written)")
    return State(path, facts)


@torch.no_grad()
def load_into(trained: Mapping[str, Tensor], saved: Mapping[str, Tensor], name: str) -> None:
    """A state's weights into the live ones: the same names and shapes, else a ValueError that names the first that differs."""
    ours, theirs = ({k: tuple(t.shape) for k, t in tensors.items()} for tensors in (trained, saved))
    if wrong := sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)):
        raise ValueError(
            f"{name} is of another model: {wrong[0]} is {theirs.get(wrong[0], 'missing')} there and {ours.get(wrong[0], 'missing')} "
            f"in the model ({len(wrong)} differ). Choose a new folder, or build the model as it was."
        )
    for key, tensor in trained.items():
        tensor.copy_(saved[key])


def _step(path: Path) -> int:
    return int(path.name[6:])


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """On the disk, not only on its way there: a state must survive a power cut after it got its name."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _rename(part: Path, path: Path) -> None:
    """One move; a damaged state of the same step makes room first."""
    if path.exists():
        shutil.rmtree(path)
    part.rename(path)
