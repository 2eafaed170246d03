"""Equations in `math` blocks and as `$x$`, as GitHub has them, become MathML: no scripts."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert


def block(source: str, language: str, css_class: str, *_: Any, **__: Any) -> str:
    """A formatter for pymdownx.superfences."""
    return f'<div class="{css_class}">{convert(source, display="block")}</div>'


def in_lines(markdown: str) -> str:
    """Markdown with the equations between dollar signs exchanged; code is left alone."""

    def made(found: re.Match) -> str:
        if not found["source"]:
            return found[0]
        return f"<span>{convert(found['source'])}</span>"  # <math> would begin a block of HTML

    return re.sub(r"```.*?```|`[^`]*`|\$(?P<source>[^$\n]+)\$", made, markdown, flags=re.DOTALL)


FENCE = {"name": "math", "class": "equation", "format": block}
