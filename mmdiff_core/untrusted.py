"""Values that strangers wrote: JSON read into typed records, and text quoted in messages.

Every message is in words of this pack. A stranger's text appears in it by `repr`, which leaves no
control character, and cut to a bounded length.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

Record = TypeVar("Record")

SHOWN = 60  # characters of a value in a message
MOST_JSON = 1 << 24  # bytes
# for a record's `__pydantic_config__` or `model_config`
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

# pydantic's kind of error -> what was expected, filled in from the error's own facts
EXPECTED = {
    "bool_type": "true or false",
    "dataclass_exact_type": "an object",
    "dataclass_type": "an object",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number from {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "json_invalid": "text in Unicode and numbers of a bounded length",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number up to {le}",
    "list_type": "a list",
    "literal_error": "one of {expected}",
    "model_type": "an object",
    "string_pattern_mismatch": "text of the form {pattern}",
    "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text of at least {min_length} characters",
    "string_type": "text",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "tuple_type": "a list",
}
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


class _Short(reprlib.Repr):
    """`repr` that is bounded in depth and length, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, SHOWN, SHOWN

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 128:  # a very long one is a ValueError of `repr`
            return f"a number of {value.bit_length()} bits"
        return repr(value)


_short = _Short()


def quoted(value: object) -> str:
    """A JSON value for a message: its `repr`, cut."""
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{value[: SHOWN - 15]!r}... ({len(value)} characters)"
    shown = _short.repr(value)
    return shown if len(shown) <= 3 * SHOWN else f"{shown[: 3 * SHOWN]}..."


def listed(values: Iterable[object], most: int = 4) -> str:
    """Several values for a message, in brackets; the first `most` of them quoted."""
    values = list(values)
    return f"[{', '.join(map(quoted, values[:most]))}]{_left(values, most)}"


def quoted_list(values: Iterable[object], most: int = 20) -> str:
    """Several values in a sentence, the first `most` of them quoted; "nothing" without any."""
    values = list(values)
    return (", ".join(map(quoted, values[:most])) + _left(values, most)) or "nothing"


def _left(values: list, most: int) -> str:
    return f" and {len(values) - most} more" if len(values) > most else ""


def plain(name: str, most: int = 120) -> str:
    """A name as it is where it is short and printable; else quoted and cut."""
    return name if name.isprintable() and len(name) <= most else quoted(name)


# ---------------------------------------------------------------- JSON


def load_json(text: bytes | str, what: str, most: int = MOST_JSON) -> Any:
    """The value of a JSON text.

    ValueError, which begins with `what`: it is longer than `most`, is not JSON, is nested too
    deeply, has a key twice in an object, or a number that is not finite.
    """
    if len(text) > most:
        raise ValueError(f"{what} is JSON of {len(text)} bytes, expected at most {most}")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_not_a_number)
    except RecursionError:
        raise ValueError(f"{what} is JSON that is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not JSON: it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{what} is not JSON: it breaks off or is wrong at {where}") from None
    except ValueError as error:
        reason = str(error) if str(error).startswith("it ") else "a number in it is too long"
        raise ValueError(f"{what} is not JSON of the expected form: {reason}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {quoted(twice)} twice")
    return made


def _not_a_number(text: str) -> float:
    raise ValueError(f"it has {text}, which is no finite number")


# ---------------------------------------------------------------- records


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def parse(kind: type[Record], text: bytes | str, what: str) -> Record:
    """JSON text as a record; errors as in `load_json` and `fill`."""
    return fill(kind, load_json(text, what), what)


def fill(kind: type[Record], values: object, what: str) -> Record:
    """Values, as json.load gives them, as a record: a dataclass or a pydantic model.

    Types are strict: "64" is no number and 1 is not true. ValueError, which begins with `what`,
    names the fields that are unknown, missing, of another type or out of range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} is {quoted(values)}, expected an object with named fields")
    try:
        # as JSON: there a list is a tuple and an object a dataclass, and all else is strict
        return _adapter(kind).validate_json(json.dumps(values))
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValidationError as error:
        raise ValueError(f"{what} {_told(error, kind)}") from None


def _told(error: ValidationError, kind: type) -> str:
    """What is wrong, in words: unknown fields first, then missing ones, then the first value."""
    found = error.errors(include_url=False)
    for kinds, words in ((UNKNOWN, "has unknown fields"), (("missing",), "lacks the fields")):
        places = [tuple(e["loc"]) for e in found if e["type"] in kinds]
        if places:
            section = places[0][:-1]
            names = sorted(str(p[-1]) for p in places if p[:-1] == section)
            known = _known(kind) if not section and kinds == UNKNOWN else ""
            return f"{_section(section)}{words} {listed(names)}{known}"
    first = found[0]
    if first["type"] == "value_error":
        return f"is wrong: {first['ctx']['error']}"
    expected = EXPECTED.get(first["type"], "a value of another kind")
    place = ".".join(str(part) for part in first["loc"]) or "the value"
    expected = expected.format_map(first.get("ctx", {}))
    return f"has {plain(place)} {quoted(first['input'])}, expected {expected}"


def _section(place: tuple) -> str:
    return f"in its section {'.'.join(map(str, place))!r} " if place else ""


def _known(kind: type) -> str:
    if dataclasses.is_dataclass(kind):
        return f"; known are {sorted(f.name for f in dataclasses.fields(kind))}"
    return f"; known are {sorted(kind.model_fields)}"
