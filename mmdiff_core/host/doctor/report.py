"""The report: its lines, as text and as a table in HTML."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

OK, NOTE, MISSING = "ok", "note", "missing"
INDENT = "\n" + 10 * " "  # of a line's further rows in the report
# behind the word of a state; white text on each has a contrast of at least 4.5 to 1 (WCAG 2.2 AA)
COLOURS = {OK: "#2e7d32", NOTE: "#a35200", MISSING: "#c62828"}
LINK = re.compile(r"https?://[^\s<>\"]*[^\s<>\".,;:)]")


@dataclass(frozen=True)
class Line:
    """One line of the report: ok, note (worth knowing) or missing."""

    state: str
    part: str  # the heading it stands under
    text: str


def render(lines: Sequence[Line]) -> str:
    """The report as text: the count, then each part with its lines."""
    rows = [headline(lines)]
    for part in dict.fromkeys(line.part for line in lines):
        rows += ["", part]
        for line in lines:
            if line.part == part:
                rows.append(f"  {line.state:8}{line.text}".replace("\n", INDENT))
    return "\n".join(rows)


def headline(lines: Sequence[Line]) -> str:
    """How many lines are missing, and how many are notes."""
    count = Counter(line.state for line in lines)
    return f"MM-Diff Doctor: {count[MISSING]} missing, {count[NOTE]} note{'s' * (count[NOTE] != 1)}"


def as_table(lines: Sequence[Line]) -> str:
    """The report as an HTML table, first the parts where something is missing. It has no blank
    lines, so that Markdown takes it as one block."""
    rows = [f"<table>\n<caption>{html.escape(headline(lines))}</caption>"]
    for part in _worst_first(lines):
        rows.append(f'<tr><th colspan="2" align="left">{html.escape(part)}</th></tr>')
        rows += [_row(line) for line in lines if line.part == part]
    return "\n".join([*rows, "</table>"])


def _worst_first(lines: Sequence[Line]) -> list[str]:
    """The parts: those with a missing line, those with a note, the others; else in their order."""
    worst: dict[str, int] = {}
    for line in lines:
        rank = (MISSING, NOTE, OK).index(line.state)
        worst[line.part] = min(worst.get(line.part, rank), rank)
    return sorted(worst, key=worst.__getitem__)


def _row(line: Line) -> str:
    badge = f"background:{COLOURS[line.state]};color:#fff;padding:1px 8px;border-radius:8px"
    return (
        f'<tr><td><span style="{badge}">{line.state}</span></td>'
        f'<td style="overflow-wrap:anywhere">{_linked(line.text)}</td></tr>'
    )


def _linked(text: str) -> str:
    """A line's text in HTML, its addresses as links."""
    parts, end = [], 0
    for found in LINK.finditer(text):
        address = html.escape(found[0])
        parts.append(html.escape(text[end : found.start()]))
        parts.append(f'<a href="{address}" target="_blank" rel="noopener">{address}</a>')
        end = found.end()
    return "".join([*parts, html.escape(text[end:])]).replace("\n", "<br>")


def as_page(lines: Sequence[Line]) -> str:
    """The table as a page of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<title>MM-Diff Doctor</title><style>body{font:15px/1.5 sans-serif;max-width:60em;"
        "margin:2em auto;padding:0 1em}caption{text-align:left;font-weight:bold}th{padding-top:1em}"
        "td{vertical-align:top;padding:3px 8px 3px 0}</style></head>\n"
        f"<body>{as_table(lines)}</body></html>\n"
    )
