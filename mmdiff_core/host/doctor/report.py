"""The report: its lines, and their text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

OK, NOTE, MISSING = "ok", "note", "missing"
INDENT = "\n" + 10 * " "  # of a line's further rows in the report


@dataclass(frozen=True)
class Line:
    """One line of the report: ok, note (worth knowing) or missing."""

    state: str
    part: str  # the heading it stands under
    text: str


def render(lines: Sequence[Line]) -> str:
    """The report as text: the count, then each part with its lines."""
    count = Counter(line.state for line in lines)
    head = f"MM-Diff Doctor: {count[MISSING]} missing, {count[NOTE]} note{'s' * (count[NOTE] != 1)}"
    rows = [head]
    for part in dict.fromkeys(line.part for line in lines):
        rows += ["", part]
        for line in lines:
            if line.part == part:
                rows.append(f"  {line.state:8}{line.text}".replace("\n", INDENT))
    return "\n".join(rows)
