"""The pages of the nodes: their help pages, and a table of what their schemas say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TABLE = """
## Types, defaults and ranges

Node id `{id}`, category *{category}*. As the schema says it to ComfyUI.

| input | type | default | range or choices |
| --- | --- | --- | --- |
{inputs}

| output | type |
| --- | --- |
{outputs}
"""
NO_INPUTS = "| (none) | | | |"
MANY = 12  # choices that are shown


def reference(node: Mapping[str, Any]) -> str:
    """The table of a node, from its entry in /object_info."""
    both = zip(node["output_name"], node["output"])
    outputs = [f"| `{name}` | {type_} |" for name, type_ in both]
    return TABLE.format(
        id=node["name"],
        category=node["category"],
        inputs="\n".join(rows(node)) or NO_INPUTS,
        outputs="\n".join(outputs) or "| (none) | |",
    )


def rows(node: Mapping[str, Any]) -> Iterator[str]:
    """A row for each input; optional ones say so."""
    for group in ("required", "optional"):
        for name, (kind, *more) in node["input"].get(group, {}).items():
            told = more[0] if more else {}
            choices = kind if isinstance(kind, list) else told.get("options")
            type_ = "COMBO" if isinstance(kind, list) else kind
            optional = " (optional)" if group == "optional" else ""
            cells = [f"`{name}`{optional}", type_, default(told), scope(told, choices)]
            yield f"| {' | '.join(cells)} |"


def default(told: Mapping[str, Any]) -> str:
    """The default as it is typed; empty for none and for an empty text."""
    value = told.get("default")
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value in (None, "") else f"`{value}`".replace("|", "\\|").replace("\n", " ")


def scope(told: Mapping[str, Any], choices: list[Any] | None) -> str:
    """The range of a number, or the choices of a combo."""
    if choices is not None:
        shown = ", ".join(f"`{choice}`" for choice in choices[:MANY])
        return shown + (" …" if len(choices) > MANY else "")
    if "min" in told and "max" in told:
        step = f", step {told['step']:g}" if "step" in told else ""
        return f"{told['min']:g} to {told['max']:g}{step}"
    return ""
