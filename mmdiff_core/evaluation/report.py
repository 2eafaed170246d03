"""Writes what a run found: report.html, report.md, results.json, scores.csv."""

from __future__ import annotations

from pathlib import Path

from .intervals import Interval
from .page import number, page_of
from .results import Results, as_json, write_csv

FILES = ("report.html", "report.md", "results.json", "scores.csv")


def write_report(results: Results, folder: Path) -> None:
    """All four files into a folder, each in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.html", page_of(results)),
        ("report.md", markdown_of(results)),
        ("results.json", as_json(results)),
    ):
        temporary = folder / f"{name}.part"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    write_csv(results, folder / "scores.csv")


def markdown_of(results: Results) -> str:
    """The tables of scores and failures, and the notes."""
    columns = results.columns
    lines = [f"# {results.title}", ""]
    lines += [_line(["", *(c.label for c in columns)]), _line(["---"] * (len(columns) + 1))]
    for row in results.rows:
        name = f"**{row.name}** ({len(row.images)})"
        lines.append(_line([name, *(_told(row.summary(c.name)) for c in columns)]))
    for side, name in (("floor", "floor: other subjects"), ("oracle", "oracle: same subject")):
        found = {key: getattr(bound, side) for key, bound in results.bounds.items()}
        if any(found.values()):
            lines.append(_line([name, *(_told(found.get(c.name)) for c in columns)]))
    for name, values in results.peers.items():
        told = [number(values[c.name]) if c.name in values else "" for c in columns]
        lines.append(_line([f"*{name} (published)*", *told]))
    lines += ["", *_failures(results), *(f"- {note}" for note in results.notes), ""]
    return "\n".join(lines)


def _failures(results: Results) -> list[str]:
    kinds = list(dict.fromkeys(kind for row in results.rows for kind in row.failures()))
    if not kinds:
        return []
    lines = [_line(["failures", *(row.name for row in results.rows)])]
    lines.append(_line(["---"] * (len(results.rows) + 1)))
    for kind in kinds:
        shares = [row.failures().get(kind, 0) / max(len(row.images), 1) for row in results.rows]
        lines.append(_line([kind, *(f"{share:.0%}" for share in shares)]))
    return [*lines, ""]


def _told(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low is None:
        return number(interval.mean)
    return f"{number(interval.mean)} ({number(interval.low)} to {number(interval.high)})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
