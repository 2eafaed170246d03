"""From a table of columns and the heights of nodes to the places of the nodes. Pure arithmetic, in
the units of a graph's file: pixels at 100 % zoom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GAP = 24  # between columns, and between a node and the next one's title
TITLE = 30  # height of a title; it lies above a node's position
WINDOW = (1600, 1000)
MOST_WIDE = 2000
# what the page keeps for itself on the left and at the top, in both renderers
LEFT, TOP = 64, 125
NOTE = "MarkdownNote"


@dataclass(frozen=True)
class Column:
    """Nodes below one another. `below_note` is whether the note stands above them.

    A node is named by its type, the second of a type as "LoadImage 2"."""

    width: int
    nodes: tuple[str, ...]
    below_note: bool = True


@dataclass(frozen=True)
class Height:
    """Of a node without its title: as the file says it, and the most that any renderer draws,
    before a run and after it."""

    saved: int
    drawn: int


def names(graph: dict) -> dict[str, dict]:
    """The nodes of a graph by the names that a table uses."""
    found: dict[str, dict] = {}
    for node in sorted(graph["nodes"], key=lambda node: node["id"]):
        kind = node["type"]
        earlier = sum(each["type"] == kind for each in found.values())
        found[kind if not earlier else f"{kind} {earlier + 1}"] = node
    return found


def width_of_note(columns: tuple[Column, ...]) -> int:
    """The note spans the columns below it."""
    below = [column.width for column in columns if column.below_note]
    return sum(below) + GAP * (len(below) - 1)


def lay_out(graph: dict, columns: tuple[Column, ...], heights: Mapping[str, Height]) -> None:
    """Place every node of a graph, and the view on it. ValueError where table and graph differ."""
    nodes = names(graph)
    placed = [NOTE, *(name for column in columns for name in column.nodes)]
    if sorted(placed) != sorted(nodes):
        raise ValueError(f"the table has {sorted(placed)}, the graph {sorted(nodes)}")
    _place(nodes[NOTE], 0, 0, width_of_note(columns), heights[NOTE])
    below_note = heights[NOTE].drawn + GAP + TITLE
    x = 0
    for column in columns:
        y = below_note if column.below_note else 0
        for name in column.nodes:
            _place(nodes[name], x, y, column.width, heights[name])
            y += heights[name].drawn + GAP + TITLE
        x += column.width + GAP
    graph["groups"] = []
    graph["extra"]["ds"] = {"scale": 1.0, "offset": [LEFT, TOP]}


def _place(node: dict, x: int, y: int, width: int, height: Height) -> None:
    node["pos"], node["size"] = [x, y], [width, height.saved]
