"""The help pages, and the texts that they quote."""

from __future__ import annotations

import ast
import re
from functools import cache

from support.paths import PACK

PAGES = PACK / "web/docs"
TROUBLE = ("## When something is wrong", "## 出错时")


def names_of(node: dict) -> list[str]:
    """Every input and output, as the page has to write them."""
    return [
        name for group in ("required", "optional") for name in node["input"].get(group, ())
    ] + list(node["output_name"])


def named_in(page: str) -> set[str]:
    """What a page names in bold or as code; of `mask_1 to mask_6` all six."""
    found = {
        part.strip(" `*").lower()
        for span in re.findall(r"\*\*(.+?)\*\*|`([^`]+)`", page)
        for part in re.split(r", | to ", "".join(span))
    }
    for stem, first, last in re.findall(r"(\w+)_(\d+)\W+(?:to|and|–|…|\.\.\.)?\W*\1_(\d+)", page):
        found |= {f"{stem}_{i}".lower() for i in range(int(first), int(last) + 1)}
    return found


def names_missing_in(node: dict, page: str) -> list[str]:
    return [name for name in names_of(node) if name.lower() not in named_in(page)]


@cache
def sentences() -> tuple[str, ...]:
    """Every text in the pack's code; what is filled in while running is a NUL."""

    def words(item: ast.AST) -> str:
        if isinstance(item, ast.Constant) and isinstance(item.value, str):
            return re.sub(r"\{\w+\}", "\0", item.value)
        if isinstance(item, ast.JoinedStr):
            return "".join(map(words, item.values))
        return (
            words(item.left) + words(item.right)
            if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Add)
            else "\0"
        )

    files = [*(PACK / "mmdiff_core").rglob("*.py"), *(PACK / "nodes").glob("*.py")]
    return tuple(
        words(item)
        for path in files
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(item, (ast.Constant, ast.JoinedStr, ast.BinOp))
    )


def quoted(page: str) -> list[str]:
    """The messages that a page explains: sentences as code in its last part, … for what differs."""
    trouble = "".join(page.partition(heading)[2] for heading in TROUBLE)
    return [
        text
        for text in re.findall(r"`([^`]+)`", re.sub(r"\s*\n\s*", " ", trouble))
        if len(text.split()) > 3
    ]
