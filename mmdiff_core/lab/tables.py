"""The tables of the small world's results, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from ..small_world.trials import Tally
from .measures import LEVELS

MEASURED = ("inside", "gain", "cost", "leakage", "exchange")  # result keys that are not questions
COLUMNS = (
    "identity",
    "own",
    "complete",
    "seen_all",
    "mixture",
    "swap",
    "duplicate",
    "stranger",
    "missing",
    "classes",
    "background",
)


def merged(paths: list[Path]) -> dict:
    """The results of several files as one."""
    results: dict = {}
    for path in paths:
        for name, cells in json.loads(path.read_text(encoding="utf-8")).items():
            results.setdefault(name, {}).update(cells)
    return results


def table(results: dict) -> str:
    """Markdown: a row per adapter and question, shares in per cent with 95 % intervals; then what
    is measured beside the questions."""
    names = [column.replace("_", " ") for column in COLUMNS]
    lines = [
        "| adapter | asked | images | " + " | ".join(names) + " | background noise |",
        "|---" * (len(COLUMNS) + 4) + "|",
    ]
    for name, cells in results.items():
        for question, counts in cells.items():
            if question not in MEASURED:
                lines.append(row(name, question, Tally(**counts)))
    return "\n".join([*lines, *gain_rows(results), *change_rows(results)]) + "\n"


def row(name: str, question: str, tally: Tally) -> str:
    """One line of the table."""
    shares = tally.shares()
    values = [per_cent(*shares[column]) for column in COLUMNS]
    noise = f"{tally.noise / max(tally.background, 1):.1f}"
    return f"| {name} | {question} | {tally.pictures} | " + " | ".join([*values, noise]) + " |"


def per_cent(share: float, low: float, high: float) -> str:
    if share != share:  # nothing was counted
        return ""
    return f"{100 * share:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def gain_rows(results: dict) -> list[str]:
    """Markdown of the probabilities inside the masks and of the references' gain."""
    measured = {name: cells for name, cells in results.items() if "inside" in cells}
    if not measured:
        return []
    levels = " | ".join(f"gain at noise {level}" for level in LEVELS)
    lines = [
        "",
        f"| adapter | text maps inside the own mask | image maps | {levels} |",
        "|---" * (3 + len(LEVELS)) + "|",
    ]
    for name, cells in measured.items():
        gains = [f"{100 * value:.1f} %" for value in cells["gain"].values()]
        inside = [f"{cells['inside'][key]:.3f}" for key in ("text_inside", "image_inside")]
        lines.append(f"| {name} | " + " | ".join([*inside, *gains]) + " |")
    return lines


CHANGES = {
    "leakage": "change inside A without B's identity",
    "exchange": "change inside A with another B",
}


def change_rows(results: dict) -> list[str]:
    """Markdown of how far one subject changes with the other, in 0..255."""
    lines = []
    for key, head in CHANGES.items():
        rows = []
        for name, cells in results.items():
            for question, found in cells.get(key, {}).items():
                values = f"{found['inside']:.1f} | {found['whole']:.1f}"
                rows.append(f"| {name} | {question} | {values} |")
        if rows:
            lines += ["", f"| adapter | asked | {head} | whole image |", "|---|---|---|---|", *rows]
    return lines
