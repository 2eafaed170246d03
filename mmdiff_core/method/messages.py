"""How a message quotes what it was given: as Python writes it, and never long."""

from __future__ import annotations

import reprlib

LONGEST = 60  # characters of a quoted value


class _Short(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = LONGEST


def short(value: object, longest: int = LONGEST) -> str:
    """`repr` of a value, at most `longest` characters: control characters are escaped, the middle
    of a long text is left out, and no value is written out in full first."""
    try:
        text = _Short().repr(value)
    except ValueError:  # an integer of more digits than Python converts
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def quoted_list(names: list[str] | tuple[str, ...], most: int = 20) -> str:
    """Names as a list for a message: quoted, and at most `most` of them."""
    if not names:
        return "nothing"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(short(name) for name in names[:most]) + more
