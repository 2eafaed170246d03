"""A small data set of photos, encoded by a small VAE of SDXL's kind in the small world's base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from mmdiff_core.processes import Processes
from mmdiff_core.training.data.config import FileData
from mmdiff_core.training.data.encoded.making import Encoding, encode_records
from mmdiff_core.training.data.encoded.source import EncodedRecords
from mmdiff_core.training.data.opened import DecodeRecords

from support.photos import CONFIG, write_jsonl
from tiny_model.build import vae_config

SIDES = {"side": 64, "multiple": 16, "group": 4, "reference_side": 32}
LOOP = {"steps": 2, "batch": 2, "learning_rate": 1e-3, "workers": 0, "tracker": None}


def run_facts(folder: Path, records: Path, **more) -> dict:
    """The JSON of a run on the small world's base."""
    data = {"kind": "files", "records": [str(records)], **SIDES, **more}
    adapter = {"name": "small-world", "rank": 4, "text_rank": 4}
    return {"base": "small-world", "adapter": adapter, "data": data, "loop": LOOP}


def write_run(path: Path, records: Path, **more) -> Path:
    path.write_text(json.dumps(run_facts(path.parent, records, **more)), encoding="utf-8")
    return path


def small_vae():
    """A VAE of SDXL's kind, 32 channels wide, with latents of the small world's 12 channels."""
    import comfy.sd

    config = vae_config(12)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = {}
        for name, weight in comfy.sd.AutoencoderKL(**config["params"]).state_dict().items():
            flat = torch.ones if name.endswith("weight") else torch.zeros
            scale = max(weight[0].numel(), 1) ** -0.5 if weight.ndim > 1 else 0
            state[name] = torch.randn(weight.shape) * scale if scale else flat(weight.shape)
    vae = comfy.sd.VAE(sd=state, config=config, dtype=torch.float32)
    vae.latent_channels = 12
    return vae


class Photos:
    """Records on disk, a task whose base has the small VAE, and the folder that they go to."""

    def __init__(self, folder: Path, task, count: int = 9) -> None:
        self.folder, self.task = folder / "encoded", task
        self.path = write_jsonl(folder, count)
        self.config = replace(CONFIG, reference_side=32)

    @property
    def records(self):
        from mmdiff_core.training.data.reading import read_jsonl

        return read_jsonl(self.path).records

    def recipe(self, **changed):
        from mmdiff_core.host.frozen_base.latents import recipe_of

        files = FileData(("x",), config=replace(self.config, **changed))
        return recipe_of(files, self.task.bridge.encoder)

    def encode(self, encode=None, find_face=None, recipe=None, shard: int = 4) -> int:
        """Encode in this process; how many were made."""
        encoding = Encoding(
            recipe or self.recipe(),
            DecodeRecords(find_face),
            encode or self.task.bridge.latents,
            shard,
        )
        return encode_records(
            self.records, self.folder, encoding, Processes("cpu"), lambda text: None
        )

    def opened(self, **changed) -> EncodedRecords:
        return EncodedRecords(self.folder, self.recipe(**changed), self.records)
