"""What a run found, as data: written as JSON and CSV, and read by the report."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .intervals import Interval, bootstrap, by_subject

FORMAT = 1


@dataclass(frozen=True)
class Column:
    """A measure in the tables. `whose` is "ours", or "theirs" where no value of ours is beside."""

    name: str
    label: str
    kind: str
    better: str = "higher"
    whose: str = "ours"


@dataclass(frozen=True)
class ImageResult:
    """One image's values and failures.

    file        of the image
    group       its bar in the charts: the subjects' names
    unit        what the bootstrap resamples: the group, where subjects come again in many images
    references  files of what it should resemble
    """

    file: str
    group: str
    unit: str
    number: int
    prompt: str
    references: tuple[str, ...]
    values: Mapping[str, float | None]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of the tables: a tool's images, or a bound.

    told  what tool and settings made it, as its manifest says
    """

    name: str
    images: tuple[ImageResult, ...]
    expected: int
    told: Mapping[str, object] = field(default_factory=dict)

    def summary(self, column: str) -> Interval | None:
        """Mean over units of their mean over images."""
        return by_subject(self._values(column, "unit"))

    def groups(self, column: str) -> dict[str, Interval]:
        """Each group's mean over its images, with an interval over these."""
        found = {}
        for name, values in self._values(column, "group").items():
            found[name] = bootstrap(values, draws=1000)
        return found

    def failures(self) -> dict[str, int]:
        """Images by kind of failure, the most frequent first."""
        counts: dict[str, int] = {}
        for image in self.images:
            for kind in set(image.failures):
                counts[kind] = counts.get(kind, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _values(self, column: str, by: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for image in self.images:
            value = image.values.get(column)
            if value is not None:
                found.setdefault(getattr(image, by), []).append(value)
        return found


@dataclass(frozen=True)
class Bound:
    """What unrelated and same subjects score on one column; None where there is nothing to tell."""

    floor: Interval | None
    oracle: Interval | None


@dataclass(frozen=True)
class Results:
    """A run of a protocol.

    bounds    by column
    peers     published rows: name -> values by column
    models    what scored: label -> hash of its files
    weights   what drew, as far as it was named: file -> hash
    notes     sentences that belong below the tables
    """

    protocol: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    peers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    seed: int = 0
    notes: tuple[str, ...] = ()

    def lead(self, kind: str) -> Column | None:
        """The first column of a kind that is ours."""
        return next((c for c in self.columns if c.kind == kind and c.whose == "ours"), None)


def as_json(results: Results) -> str:
    """All of it, with every mean and its interval."""
    told = dataclasses.asdict(results)
    for row, written in zip(results.rows, told["rows"], strict=True):
        summaries = {}
        for column in results.columns:
            found = row.summary(column.name)
            summaries[column.name] = None if found is None else dataclasses.asdict(found)
        written["summary"], written["failures"] = summaries, row.failures()
    return json.dumps({"format": FORMAT, **told}, indent=1, ensure_ascii=False)


def write_csv(results: Results, path: Path) -> None:
    """One line for each image."""
    names = [column.name for column in results.columns if column.whose == "ours"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "subjects", "number", "prompt", "file", *names, "failures"])
        for row in results.rows:
            for image in row.images:
                writer.writerow(_line(row.name, image, names))


def _line(name: str, image: ImageResult, columns: Sequence[str]) -> list[object]:
    values = ["" if (v := image.values.get(c)) is None else f"{v:.6f}" for c in columns]
    told = [name, image.group, image.number, image.prompt, image.file]
    return [*map(_cell, told), *values, "; ".join(image.failures)]


def _cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" else value
