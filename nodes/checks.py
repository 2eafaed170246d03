"""Widgets checked against their node's schema, twice: before a run those whose value is known, and
in the run all of them, since a link may bring any value.

Before a run ComfyUI passes None for a linked widget (Comfy-Org/ComfyUI#7888), and hosts before 0.4
do not compare a combo's value with its options.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io

from ..mmdiff_core.untrusted import quoted, quoted_list

LONGEST = 100_000  # characters of a text


class CheckedNode(io.ComfyNode):
    """A node whose widgets are checked. What its schema cannot say stands in `check`; inputs in
    `lookups` are checked by the function that looks them up, which tells more than "not listed"."""

    lookups: Mapping[str, Callable[[str], object]] = {}

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        """ValueError for values that do not go together. Before a run linked ones are missing."""


def told(node: type[CheckedNode], **values) -> bool | str:
    """What `validate_inputs` answers for these inputs: True, or what is wrong with them."""
    try:
        check_values(node, {name: value for name, value in values.items() if value is not None})
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return True


def checked(execute: Callable) -> Callable:
    """An `execute` whose widgets are checked first. ValueError or FileNotFoundError."""
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def run(cls, *args, **inputs):
        known = {item.id for item in cls.define_schema().inputs}
        if unknown := sorted(set(inputs) - known):
            raise ValueError(
                f"this node has no input {quoted(unknown[0])}; its inputs: {quoted_list([*known])}"
            )
        given = signature.bind(cls, *args, **inputs)
        given.arguments.update(check_values(cls, given.arguments))
        return execute(*given.args, **given.kwargs)

    return run


def check_values(node: type[CheckedNode], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets as its `execute` wants them; other inputs are left alone."""
    found = {}
    for item in node.define_schema().inputs:
        if item.id in values and item.id in node.lookups:
            node.lookups[item.id](values[item.id])
            found[item.id] = values[item.id]
        elif item.io_type in SOCKETS and item.id in values:
            _socket(item, values[item.id])
        elif item.id in values:
            check = next((CHECKS[kind] for kind in CHECKS if isinstance(item, kind)), None)
            if check is not None:
                found[item.id] = check(item, values[item.id])
    node.check(found)
    return found


def _number(item, value: object) -> float:
    number = _real(value)
    if not math.isfinite(number):
        raise ValueError(_expected(item, value, "a number"))
    return _in_range(item, number, "a number")


def _whole_number(item, value: object) -> int:
    if _real(value) % 1 != 0:
        raise ValueError(_expected(item, value, "a whole number"))
    return _in_range(item, int(value), "a whole number")


def _real(value: object) -> float:
    """A number as a float; NaN for whatever is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _in_range(item, value, what: str):
    if (item.min is not None and value < item.min) or (item.max is not None and value > item.max):
        raise ValueError(_expected(item, value, what))
    return value


def _expected(item, value: object, what: str) -> str:
    bounds = "" if item.min is None or item.max is None else f" from {item.min:g} to {item.max:g}"
    return f"{item.id} is {quoted(value)}, expected {what}{bounds}{_linked(value)}"


def _linked(value: object) -> str:
    return "; the linked node gave nothing" if value is None else ""


def _text(item, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{item.id} is {quoted(value)}, expected text{_linked(value)}")
    if len(value) > LONGEST:
        raise ValueError(f"{item.id} is {len(value)} characters long, at most {LONGEST}")
    return value


def _switch(item, value: object) -> bool:
    if type(value).__name__ not in ("bool", "bool_", "int") or value not in (0, 1):
        raise ValueError(f"{item.id} is {quoted(value)}, expected true or false{_linked(value)}")
    return bool(value)


def _choice(item, value: object) -> str:
    if not isinstance(value, str) or value not in item.options:
        raise ValueError(
            f"{item.id} is {quoted(value)}, expected one of: {quoted_list(item.options)}"
            f"{_linked(value)}"
        )
    return value


def _socket(item, value: object) -> None:
    """ValueError for what no node of the pack sends; any type of link can be forced on a socket."""
    if value is None and item.optional:
        return
    attribute, node = SOCKETS[item.io_type]
    if isinstance(value, tuple) and attribute == "subject":
        fits = (value or item.optional) and all(hasattr(each, attribute) for each in value)
    else:
        fits = attribute != "subject" and hasattr(value, attribute)
    if not fits:
        raise ValueError(f"{item.id} is {quoted(value)}, expected the output of {node}")


# type of a socket -> an attribute of what it carries, and who makes that
SOCKETS = {
    "MMDIFF": ("adapter", "Load MM-Diff"),
    "MMDIFF_SUBJECTS": ("subject", "MM-Diff Subject Encoder or another node of subjects"),
    "MMDIFF_FACES": ("portrait", "Load Face Analysis"),
    "MMDIFF_MAPS": ("maps", "MM-Diff Watch Attention"),
    "MMDIFF_SCORES": ("scale", "MM-Diff Likeness"),
}
CHECKS: dict[type, Callable[[Any, Any], Any]] = {
    io.Float.Input: _number,
    io.Int.Input: _whole_number,
    io.String.Input: _text,
    io.Boolean.Input: _switch,
    io.Combo.Input: _choice,
}
