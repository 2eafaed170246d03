"""`manifest.json` of a folder of images: which tool drew them, with which settings and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..untrusted import STRICT, parse
from .sets import bounded_text

FILE = "manifest.json"


@dataclass(config=STRICT)
class Manifest:
    """What is known of a folder's images; all but the tool may be left out.

    tool      what drew them
    protocol  which protocol's prompts
    host      version of ComfyUI, or of another host
    settings  any names and plain values
    models    names of the models' files -> SHA-256, or "" where it is not known
    seeds     path of an image below `images`, without ending -> its seed
    """

    tool: str = Field(min_length=1, max_length=200)
    protocol: str = Field(default="", max_length=80)
    host: str = Field(default="", max_length=80)
    settings: dict[str, str | int | float | bool] = Field(default={}, max_length=200)
    models: dict[str, str] = Field(default={}, max_length=200)
    seeds: dict[str, int] = Field(default={}, max_length=200_000)


def read_manifest(folder: Path) -> Mapping[str, object]:
    """The folder's manifest as plain values; empty where there is none. ValueError for another
    form."""
    path = folder / FILE
    if not path.is_file():
        return {}
    return asdict(parse(Manifest, bounded_text(path, "the manifest", 1 << 24), str(path)))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.part"
    temporary.write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    temporary.replace(folder / FILE)
