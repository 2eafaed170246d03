"""One training run on ComfyUI's models: from its config to adapter.safetensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints import checkpoint
from ...references.faces import load_analyser
from ...small_world.examples import SmallWorldExamples
from ...training.config import RunConfig
from ...training.data.config import FaceModels, FileData
from ...training.data.encoded.source import EncodedRecords
from ...training.data.files import FileExamples
from ...training.data.opened import FindFace
from ...training.data.workers import MadeAhead
from ...training.example import ExampleSource, ReferenceFace
from ...training.run.config import LoopConfig
from ...training.run.loop import fit
from ...training.run.report import hardware
from ...training.run.trainer import Export, Sample
from ...training.task import MMDiffTask
from ...training.trainable import to_flat
from ...untrusted import fill, listed, quoted
from .base import SMALL_WORLD
from .build import build_task
from .contact import training_grid
from .cost import compare_cost
from .latents import LatentEncoder, read_all, recipe_of


def train(config: Path, folder: Path, init: Path | None, device: str, command: str) -> str:
    """Train an adapter; lines for a person: the report, and what a step costs.

    config   file of a `RunConfig`
    folder   receives states, samples and adapter.safetensors; a run that it holds is continued
    init     an adapter of the same sizes to start from
    command  what the adapter's header says that made it

    ValueError, OSError and RunError say what is wrong.
    """
    run = RunConfig.from_json(config.read_text(encoding="utf-8"))
    loop = LoopConfig.from_dict({"seed": run.seed, **run.loop})
    flat = checkpoint.read(init)[1] if init else None
    task = build_task(run, device, flat)
    source = load_data(run.data, run.seed, device, task.bridge.encoder)
    export, sample = export_with(run, task, command, init), sample_with(task, source)
    report = fit(task, source, loop, folder, export=export, sample=sample)
    return f"{report}\n{compare_cost(task, source.batch(0, loop.batch), loop.mixed_precision)}"


def load_data(
    data: Mapping,
    seed: int,
    device: torch.device | str = "cpu",
    encoder: LatentEncoder | None = None,
) -> ExampleSource:
    """The examples of a run's "data".

    data     {"kind": "small-world", ...} or {"kind": "files", "records": [...], ...}
    device   where the small world's examples lie; those of files lie on the CPU
    encoder  of the run's base; needed where data.encoded is set
    """
    wanted = dict(data)
    kind = wanted.pop("kind", None)
    if kind == SMALL_WORLD:
        known = {f.name for f in dataclasses.fields(SmallWorldExamples)} - {"device"}
        if unknown := sorted(set(wanted) - known):
            raise ValueError(
                f"data has unknown fields {listed(unknown)}; known are {sorted(known)}"
            )
        source = fill(SmallWorldExamples, {"seed": seed, **wanted}, "the section data")
        source = dataclasses.replace(source, device=str(device))
        if not source.processes:
            return source
        return MadeAhead(source, source.processes, source.pack, source.finish)
    if kind == "files":
        return file_examples(FileData.from_dict(wanted), seed, encoder)
    raise ValueError(f'data.kind is {quoted(kind)}, expected "{SMALL_WORLD}" or "files"')


def file_examples(files: FileData, seed: int, encoder: LatentEncoder | None) -> FileExamples:
    """The examples of annotated images, encoded before the run where `files` says so."""
    records, own_seed = read_all(files), seed if files.seed is None else files.seed
    if files.encoded is None:
        find_face = None if files.faces is None else face_finder(files.faces)
        return FileExamples(records, own_seed, files.config, find_face)
    if encoder is None:
        raise ValueError("data.encoded is set, but there is no base to compare its VAE with")
    encoded = EncodedRecords(Path(files.encoded), recipe_of(files, encoder), records)
    return FileExamples(records, own_seed, files.config, open_record=encoded)


def face_finder(wanted: FaceModels) -> FindFace:
    """What finds the face in a crop."""
    analyser = load_analyser(Path(wanted.root), wanted.model, wanted.device)

    def find_face(crop: Tensor) -> ReferenceFace | None:
        image = (crop * 255).round().byte().movedim(0, -1).numpy()
        try:
            embedding, aligned, _ = analyser.portrait(image, 0, "a training crop")
        except ValueError:  # no face in this crop
            return None
        pixels = torch.from_numpy(aligned.copy()).movedim(-1, 0).float() / 255
        return ReferenceFace(torch.from_numpy(embedding).float(), pixels)

    return find_face


def export_with(run: RunConfig, task: MMDiffTask, command: str, init: Path | None = None) -> Export:
    """What `fit` calls with the weights: writes the file that Load MM-Diff reads."""
    begun_from = checkpoint.history(init) if init else None

    def export(weights: Mapping[str, Tensor], path: Path, facts: dict) -> None:
        state = {}
        for name, weight in weights.items():
            own = name.removeprefix("module.")
            if own.startswith("adapter."):      # not the heads of auxiliary objectives
                state[own.removeprefix("adapter.")] = weight.detach().cpu()
        header = {"run": run.to_json(), "made_by": command, "hardware": hardware()}
        header |= {"torch": torch.__version__, **facts}
        if init:
            header["begun_from"] = begun_from
        texts = {key: str(value) for key, value in header.items()}
        checkpoint.save_single(path, task.adapter.config, to_flat(state), extra=texts)

    return export


def sample_with(task: MMDiffTask, source: ExampleSource, count: int = 6) -> Sample:
    """What `fit` calls every `sample_every` steps: draws the first `count` examples."""

    def sample(step: int, folder: Path) -> None:
        training_grid(task, source.batch(0, count), folder / "samples.png")

    return sample
