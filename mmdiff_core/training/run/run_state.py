"""The states of a run on disk; each is there whole or not at all.

A run's folder   state-00000500/   weights.safetensors, ema.safetensors, optimizer.pt, state.json
                                   (facts and checksums); under FSDP and DeepSpeed accelerate's
                                   shards/ (of the whole model) instead of optimizer.pt
                 metrics.jsonl, adapter.safetensors, samples/, tensorboard/: written by the others
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

from .config import LoopConfig
from .errors import RunError

log = logging.getLogger(__name__)

FORMAT, VERSION = "training-run", 1
FACTS = "state.json"
UNFINISHED = ".part"

MAY_CHANGE = (
    "steps",
    "save_every",
    "keep_last",
    "log_every",
    "sample_every",
    "workers",
    "tracker",
)
# may change together: their product is what a step sees
SPLIT = ("batch", "accumulate", "processes")


def check_same_run(saved: Mapping, now: Mapping, name: str) -> None:
    """Check that a run with the facts `now` continues the one saved in the state `name`.

    ValueError names each field that differs, with its old and new value. A field that a state of
    an older version lacks had its default.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(LoopConfig)}
    saved = defaults | dict(saved)
    skip = {*MAY_CHANGE, "step", "files", "format", "version"}
    if _step_size(saved) == _step_size(now):
        skip |= {*SPLIT}
    changed = []
    for field in sorted({*saved, *now} - skip):
        if saved.get(field) != now.get(field):
            changed.append(f"{field} was {saved.get(field)!r} and is now {now.get(field)!r}")
    if changed:
        raise ValueError(
            f"{name} was trained otherwise: {'; '.join(changed)}. Set the old values to go on with "
            f"it, or choose a new folder. Only {', '.join(MAY_CHANGE)} may change within a run, "
            f"and {', '.join(SPLIT)} if their product stays."
        )


def _step_size(facts: Mapping) -> int:
    """Examples in one optimiser step over all processes."""
    return math.prod(facts[field] for field in SPLIT)


# ---------------------------------------------------------------- states


@dataclass(frozen=True)
class State:
    """One whole state on disk.

    facts  its state.json: step, processes, parameter groups and the config's fields
    """

    path: Path
    facts: dict

    def tensors(self, name: str) -> dict[str, Tensor]:
        """`weights` or `ema`, on the CPU."""
        return load_file(self.path / f"{name}.safetensors")

    def optimizer(self) -> dict:
        """Optimiser and loss scaler, on the CPU."""
        return torch.load(self.path / "optimizer.pt", map_location="cpu", weights_only=True)


class RunStates:
    """The states in a run's folder; the newest `keep` of them are kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Finished states, newest first."""
        named = (p for p in self.folder.glob("state-*") if p.name[6:].isdigit() and p.is_dir())
        return sorted(named, key=_step, reverse=True)

    def path(self, step: int) -> Path:
        """Folder of the state of this step."""
        return self.folder / f"state-{step:08d}"

    def part(self, step: int) -> Path:
        """Where a state is written before it gets its name."""
        return self.folder / f"{self.path(step).name}{UNFINISHED}"

    def newest(self) -> State | None:
        """The newest undamaged state; None if there are no states.

        RunError if all of them are damaged.
        """
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
                f"no state in {self.folder} can be used: {'; '.join(damaged)}. Restore one from a "
                "copy, or choose a new folder."
            )
        return None

    def begin(self, step: int) -> Path:
        """An empty folder for the state of this step."""
        part = self.part(step)
        with self.explained(step):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        return part

    def commit(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        optimizer: dict | None,
        facts: dict,
    ) -> None:
        """Write what is left to write, rename the state in one move, and delete old ones.

        RunError if the disk fails.
        """
        with self.explained(step):
            part = self.part(step) if self.part(step).is_dir() else self.begin(step)
            for name, group in tensors.items():
                saved = {k: v.detach().cpu().contiguous() for k, v in group.items()}
                save_file(saved, part / f"{name}.safetensors")
            if optimizer is not None:
                torch.save(optimizer, part / "optimizer.pt")
            files = sorted(p for p in part.rglob("*") if p.is_file())
            sums = {path.relative_to(part).as_posix(): _checksum(path) for path in files}
            header = {"format": FORMAT, "version": VERSION, "step": step, "files": sums}
            (part / FACTS).write_text(json.dumps(header | facts, indent=1), encoding="utf-8")
            for path in [*files, part / FACTS]:
                _flush(path)
            _rename(part, self.path(step))
        self._prune(step)

    def _prune(self, step: int) -> None:
        """Keep the newest up to this step.

        Later ones are damaged, or the run would have gone on from them.
        """
        earlier = [path for path in self.paths() if _step(path) <= step]
        later = set(self.paths()) - set(earlier)
        for path in [*later, *earlier[self.keep :], *self.folder.glob(f"state-*{UNFINISHED}")]:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def explained(self, step: int) -> Iterator[None]:
        """Make a failed write a RunError and remove the attempt.

        safetensors and torch.save have errors of their own.
        """
        try:
            yield
        except RunError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(self.part(step), ignore_errors=True)
            last = next((path.name for path in self.paths()), None)
            good = f"{last} is untouched and training resumes from it"
            free = shutil.disk_usage(self.folder).free / 1e9
            raise RunError(
                f"the state of step {step} could not be written to {self.folder}: {error}. "
                f"{free:.1f} GB are free there. {good if last else 'no earlier state was saved'}. "
                "Make room or the folder writable, then start again with the same folder."
            ) from error


def read_state(path: Path) -> State:
    """A state whose every file is as it was written. RunError says which is not."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        sums = {name: _checksum(path / name) for name in facts["files"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path.name} is damaged ({type(error).__name__}: {error})") from error
    if (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"{path.name} has the format {facts.get('format')!r} {facts.get('version')!r}, this "
            f"version reads {FORMAT!r} {VERSION}"
        )
    if wrong := sorted(name for name, saved in facts["files"].items() if sums[name] != saved):
        raise RunError(
            f"{path.name} is damaged ({', '.join(wrong)}: not the bytes that were written)"
        )
    return State(path, facts)


@torch.no_grad()
def load_into(trained: Mapping[str, Tensor], saved: Mapping[str, Tensor], name: str) -> None:
    """Copy a state's weights into the live ones.

    ValueError names the first one whose name or shape differs.
    """
    ours, theirs = _shapes(trained), _shapes(saved)
    if wrong := sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)):
        first = wrong[0]
        raise ValueError(
            f"{name} is of another model: {first} is {theirs.get(first, 'missing')} there and "
            f"{ours.get(first, 'missing')} in the model ({len(wrong)} differ). Choose a new "
            "folder, or build the model as it was."
        )
    for key, tensor in trained.items():
        tensor.copy_(saved[key])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _step(path: Path) -> int:
    return int(path.name[6:])


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Wait until the file is on the disk: a renamed state must survive a power cut."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _rename(part: Path, path: Path) -> None:
    """Rename in one move; a damaged state of the same step is removed first."""
    if path.exists():
        shutil.rmtree(path)
    part.rename(path)
