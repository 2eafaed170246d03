"""Batches of the small world made once and read by many runs, so that all see the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..small_world.examples import Pack, SmallWorldExamples, unpack
from ..training.example import Example

TENSORS = ("pixels", "masks", "references")


def make_packs(folder: Path, count: int, size: int, processes: int) -> None:
    """Packs 0..count of `size` examples each; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [number for number in range(count) if not _file(folder, number).is_file()]
    starts = [number * size for number in wanted]
    files = [_file(folder, number) for number in wanted]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_make, files, starts, [size] * len(wanted), chunksize=4):
            pass


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _make(file: Path, start: int, size: int) -> None:
    torch.set_num_threads(1)
    pack = SmallWorldExamples().pack(start, size)
    told = {"counts": pack.counts, "captions": pack.captions, "shown": pack.shown}
    told["subjects"] = pack.subjects
    tensors = {name: getattr(pack, name).contiguous() for name in TENSORS}
    temporary = file.with_suffix(".part")
    save_file(tensors, temporary, {"told": json.dumps(told)})
    temporary.replace(file)


def read_pack(file: Path, first: int) -> Pack:
    """A pack as written, its examples numbered from `first` on."""
    with safe_open(file, "pt") as opened:
        told = json.loads(opened.metadata()["told"])
        tensors = {name: opened.get_tensor(name) for name in TENSORS}
    subjects = tuple((tuple(span), words) for span, words in told["subjects"])
    numbers = {name: tuple(told[name]) for name in ("counts", "captions", "shown")}
    return Pack(first=first, subjects=subjects, **numbers, **tensors)


@dataclass(frozen=True)
class PackedExamples:
    """An `ExampleSource` over packs; after the last pack the first comes again, under other
    numbers and so with other noise.

    size    examples of a pack, the only size that `batch` gives
    device  where the examples' tensors lie
    """

    folder: Path
    size: int
    device: str = "cpu"

    @property
    def files(self) -> Sequence[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def example(self, index: int) -> Example:
        """The example of that number."""
        start = index // self.size * self.size
        return self.batch(start, self.size)[index - start]

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        """Examples start..start+size. ValueError where that is no pack."""
        if size != self.size or start % size:
            raise ValueError(f"examples {start}..{start + size} are no pack of {self.size}")
        files = self.files
        file = files[start // size % len(files)]
        return unpack(read_pack(file, start).to(self.device))
