"""The states of a run on disk; each is there whole or not at all.

A run's folder   state-00000500/   weights.safetensors, ema.safetensors, optimizer.pt, state.json
                                   (facts and checksums, also its own); under FSDP and DeepSpeed
                                   accelerate's shards/ (of the whole model) instead of optimizer.pt
                 training.lock     held while somebody trains there
                 metrics.jsonl, adapter.safetensors, samples/, tensorboard/: written by the others
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...checkpoints.errors import FileError
from ...checkpoints.tensor_file import check_regular, open_tensor_file
from ...checkpoints.torch_file import open_torch_file
from ...untrusted import fill, listed, load_json, plain, quoted
from .config import LoopConfig
from .errors import RunError

log = logging.getLogger(__name__)

# version 1 had no checksum of its facts
FORMAT, VERSION, WITHOUT_CHECKSUM = "training-run", 2, 1
FACTS, CHECKSUM = "state.json", "checksum"
LOCK_FILE = "training.lock"
MOST_FACTS = 1 << 24  # bytes
UNFINISHED = ".part"

NAME = re.compile(r"state-[0-9]{8,12}")
# of a file in a state, by its path there; of its bytes
FileName = Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)*$", max_length=200)]
Sum = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

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
    skip = {*MAY_CHANGE, "step", "files", "format", "version", CHECKSUM}
    if _step_size(saved) == _step_size(now):
        skip |= {*SPLIT}
    changed = []
    for field in sorted({*saved, *now} - skip):
        if saved.get(field) != now.get(field):
            before, after = quoted(saved.get(field)), quoted(now.get(field))
            changed.append(f"{plain(field)} was {before} and is now {after}")
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
        """`weights` or `ema`, on the CPU. RunError where it cannot be read."""
        with self._readable():
            return open_tensor_file(self.path / f"{name}.safetensors").read()

    def optimizer(self) -> dict:
        """Optimiser and loss scaler, on the CPU. RunError where they cannot be read."""
        with self._readable():
            found = open_torch_file(self.path / "optimizer.pt").read()
            if not isinstance(found, dict) or set(found) != {"optimizer", "scaler"}:
                raise FileError("optimizer.pt does not hold an optimizer and a scaler")
            return found

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except FileError as error:
            raise RunError(f"{self.path.name} is damaged ({error})") from error


class RunStates:
    """The states in a run's folder; the newest `keep` of them are kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Finished states, newest first."""
        named = (p for p in self.folder.glob("state-*") if NAME.fullmatch(p.name) and p.is_dir())
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
            told = signed(header | facts)
            (part / FACTS).write_text(json.dumps(told, indent=1), encoding="utf-8")
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


class _Facts(BaseModel):
    """What every state says of itself; the run's own settings are compared, not used."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    format: str
    version: int
    step: Annotated[int, Field(ge=0, le=10**9)]
    processes: Annotated[int, Field(ge=1, le=10**6)]
    batch: Annotated[int, Field(ge=1, le=10**6)]
    accumulate: Annotated[int, Field(ge=1, le=10**6)]
    files: dict[FileName, Sum]
    checksum: Sum | None = None


def read_state(path: Path) -> State:
    """A state whose every file is as it was written. RunError says which is not."""
    try:
        facts = _read_facts(path)
        sums = {}
        for name in facts["files"]:
            check_regular(path / name)
            sums[name] = _checksum(path / name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path.name} is damaged ({reason})") from error
    if (facts["format"], facts["version"]) not in ((FORMAT, VERSION), (FORMAT, WITHOUT_CHECKSUM)):
        raise ValueError(
            f"{path.name} has the format {quoted(facts['format'])} {facts['version']}, this "
            f"version reads {FORMAT!r} up to {VERSION}"
        )
    if wrong := sorted(name for name, saved in facts["files"].items() if sums[name] != saved):
        raise RunError(
            f"{path.name} is damaged ({listed(wrong)}: not the bytes that were written)"
        )
    return State(path, facts)


def _read_facts(path: Path) -> dict:
    """A state's facts, checked. ValueError says what is wrong."""
    if check_regular(path / FACTS) > MOST_FACTS:
        raise ValueError(f"{FACTS} has more than {MOST_FACTS} bytes")
    facts = load_json((path / FACTS).read_bytes(), FACTS)
    told = fill(_Facts, facts, FACTS)
    expected = None if told.version == WITHOUT_CHECKSUM else signed(facts)[CHECKSUM]
    if told.checksum != expected:
        raise ValueError(f"{FACTS}: not the facts that were written")
    if "weights.safetensors" not in told.files and not facts.get("sharding"):
        raise ValueError(f"{FACTS} lists no weights")
    if any(".." in name.split("/") for name in told.files):
        raise ValueError(f"{FACTS} lists a file outside of the state")
    if _step(path) != told.step:
        raise ValueError(f"{FACTS} is of step {told.step}")
    return facts


def signed(facts: Mapping) -> dict:
    """The facts with the checksum of all of them."""
    unsigned = {name: value for name, value in facts.items() if name != CHECKSUM}
    text = json.dumps(unsigned, sort_keys=True)
    return {**unsigned, CHECKSUM: hashlib.sha256(text.encode()).hexdigest()}


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
