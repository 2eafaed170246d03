"""What is kept beside the images of an experiment's row: what draws them, and what each cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..untrusted import load_json
from .drawing import check_same
from .manifest import Manifest, write_manifest
from .sets import bounded_text

COSTS = "costs.json"
Costs = dict[str, Mapping[str, float | None]]  # place of an image -> "seconds", "memory" ...


def begin(folder: Path, manifest: Manifest) -> None:
    """Keep what draws the folder. ValueError where something else drew what is there."""
    check_same(folder, manifest)
    write_manifest(folder, manifest)


def read_costs(folder: Path) -> Costs:
    """What each image cost; empty where nothing was drawn."""
    path = folder / COSTS
    return load_json(bounded_text(path, "the costs"), str(path)) if path.is_file() else {}


def write_costs(folder: Path, costs: Costs) -> None:
    """Write them, in one step."""
    temporary = folder / f"{COSTS}.part"
    temporary.write_text(json.dumps(costs), encoding="utf-8")
    temporary.replace(folder / COSTS)
