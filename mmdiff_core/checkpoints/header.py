"""The header of our single-file checkpoints: config, what was trained, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..bases import BASES, Base, Name
from ..config import MMDiffConfig
from ..untrusted import STRICT, load_json, parse, plain, quoted
from .errors import CheckpointError, told_as
from .released import TEXT_FAMILIES
from .tensor_file import open_tensor_file

FORMAT, VERSION = "mm-diff", "1"
HISTORY = ("made_by", "run", "training_config", "training_step", "hardware", "begun_from")


@dataclass(frozen=True)
class Parts:
    """What a checkpoint holds of that which not every adapter has.

    text    families of text encoder weights with LoRA, as "<encoder>.<family>", sorted
    vision  number of fine-tuned weights of the image encoder
    """

    __pydantic_config__ = STRICT

    text: Annotated[tuple[Name, ...], Field(max_length=8)]
    vision: Annotated[int, Field(ge=0, le=10_000)]

    @classmethod
    def of(cls, keys: Iterable[str]) -> Parts:
        """The parts that these flat names belong to."""
        families, vision = set(), 0
        for key in keys:
            vision += key.startswith("vision.")
            for family, projections in TEXT_FAMILIES.items():
                stem = key.rpartition(".")[0]
                if key.startswith("text.") and stem.endswith(projections):
                    families.add(f"{key.split('.')[1]}.{family}")
        return cls(tuple(sorted(families)), vision)


def make_header(
    config: MMDiffConfig, keys: Iterable[str], extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The header of a checkpoint with these flat names; `extra` may add facts, not change ours."""
    header = {
        **(extra or {}),
        "format": FORMAT,
        "format_version": VERSION,
        "config": config.to_json(),
        "parts": json.dumps(asdict(Parts.of(keys))),
    }
    if BASES.get(config.base.name) != config.base:
        header["base"] = config.base.to_json()
    return header


def check_format(header: Mapping[str, str], name: str) -> None:
    """CheckpointError for a file that is not a checkpoint of ours, or one of a newer version."""
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{name} is not an MM-Diff checkpoint: its header says format "
            f"{quoted(header.get('format'))}, expected {FORMAT!r}. Convert MM-Diff Checkpoint "
            "writes this format from a released folder."
        )
    if header.get("format_version") != VERSION:
        raise CheckpointError(
            f"{name} has checkpoint format {quoted(header.get('format_version'))}, this pack reads "
            f"{VERSION!r}; update the pack"
        )


def config_of(header: Mapping[str, str], name: str) -> MMDiffConfig:
    """The config of our header, and with it the record of its base where that is not one of
    ours."""
    if "config" not in header:
        raise CheckpointError(f"{name}: its header lacks the config; the file is damaged")
    with told_as(CheckpointError, name):
        own = [Base.from_json(header["base"])] if "base" in header else []
        return MMDiffConfig.from_json(header["config"], BASES | {base.name: base for base in own})


def parts_of(header: Mapping[str, str], name: str) -> Parts | None:
    """What the header says the file holds; None where an older version wrote it."""
    if "parts" not in header:
        return None
    with told_as(CheckpointError, name):
        return parse(Parts, header["parts"], "the parts in its header")


def trained_text(header: Mapping[str, str]) -> bool:
    """Whether the run in a header trained the text encoders. A file without a run is taken as one
    that did: the released adapter and all its conversions have."""
    try:
        run = load_json(header["run"], "run")
        return run["adapter"]["text_rank"] != 0
    except (KeyError, TypeError, ValueError):
        return True


def header_of(path: Path) -> dict[str, str]:
    """The header of a single-file checkpoint. CheckpointError says what is wrong with the file."""
    with told_as(CheckpointError):
        header = open_tensor_file(path).header
    check_format(header, plain(path.name))
    return header


def history(path: Path) -> str:
    """Where a trained adapter comes from, as JSON for the header of what is trained on from it; the
    name alone for an official folder."""
    if path.is_dir():
        return json.dumps({"file": path.name})
    header = header_of(path)
    return json.dumps({"file": path.name} | {k: header[k] for k in HISTORY if k in header})
