"""A data set for training, a cutout, a folder of photos, and no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmdiff_core.small_world.examples import SmallWorldExamples
from mmdiff_core.training.data.reading import read_jsonl

from support.photos import SIZES, picture, write_jsonl


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return read_jsonl(write_jsonl(tmp_path_factory.mktemp("data"), 10)).records


@pytest.fixture
def square():
    """A cutout [4 40 40]: a disc of one colour."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    alpha = (((x - 19.5) ** 2 + (y - 19.5) ** 2) < 15**2).float()[None]
    return torch.cat([torch.tensor([0.8, 0.4, 0.2]).view(3, 1, 1) * alpha, alpha])


@pytest.fixture
def album(tmp_path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(4):
        picture(number, SIZES[number % 3])[0].save(folder / f"{number}.png")
    return folder


@pytest.fixture
def without_gpu(monkeypatch):
    """One training process on the CPU, whatever this machine has."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def task():
    from support.small_task import build

    return build()


@pytest.fixture(scope="module")
def batch():
    return SmallWorldExamples(seed=3, caption_dropout=0.2, subject_dropout=0.2).batch(0, 6)
