"""A run's data set, encoded before the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ...processes import Processes
from ...training.config import RunConfig
from ...training.data.config import FileData
from ...training.data.encoded.making import Encoding, encode_records
from ...training.data.opened import DecodeRecords
from ...untrusted import quoted
from .base import load_vae
from .latents import LatentEncoder, read_all, recipe_of
from .run import face_finder


def encode_data(config: Path, processes: Processes, shard: int, say: Callable[[str], None]) -> int:
    """Encode the data set of a run into its data.encoded; the number of records made here.

    config  file of a `RunConfig`
    shard   most records of a shard
    say     gets a line of progress

    ValueError and OSError say what is wrong.
    """
    run = RunConfig.from_json(config.read_text(encoding="utf-8"))
    data = dict(run.data)
    if data.pop("kind", None) != "files":
        raise ValueError(
            f'data.kind is {quoted(run.data.get("kind"))}, expected "files": other images are '
            "drawn anew for every run"
        )
    files = FileData.from_dict(data)
    if files.encoded is None:
        raise ValueError(
            'the run has no data.encoded; name a folder there, as "encoded": "encoded/"'
        )
    model, vae = load_vae(run.base)
    encoder = LatentEncoder(model.model, vae)
    find_face = None if files.faces is None else face_finder(files.faces)

    def encode(pixels: Tensor) -> Tensor:
        return encoder(pixels.to(processes.device))

    decode = DecodeRecords(find_face, files.config.background)
    encoding = Encoding(recipe_of(files, encoder), decode, encode, shard)
    return encode_records(read_all(files), Path(files.encoded), encoding, processes, say)
