"""Seeded damage: to bytes, to JSON, and what became of loading the result.

A mutation is made by a `random.Random`, so a number names it for ever.
"""

from __future__ import annotations

import copy
import json
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

LONGEST = 10.0  # seconds that a load may take

# what strangers and bugs write where something else belongs
NASTY = (
    *(None, True, False, "", "64", "no", "0", -1, 0, 1, 2, 7, 1.5, 255, 2**31, 2**31 - 1),
    *(2**63 - 1, 2**63, 10**30, -(10**30), 10**400, 1e308, -0.0, 1e-320),
    *(float("nan"), float("inf"), "\x1b[31mred\x1b[0m", "x" * 5000, "\ud800", "a\x00b", "..\n"),
    *("../../etc/passwd", "\u202ename", [], {}, [1], [[]], {"a": 1}, [None] * 50, ["x"] * 3),
    *([2**63 - 1, 2**63 - 1, 7682], [100000, 100000], [10**30, 10**30], [0, 0], [-1, -1]),
)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one damage: as disks, downloads and editors do it."""
    at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 64, 1000))
    if rng.random() < 0.3:
        at = rng.randrange(min(len(data), 600))  # headers come first
    kind = rng.randrange(8)
    if kind <= 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(length) + data[at + length :]
    if kind == 3:
        return data[:at] + bytes(length) + data[at + length :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        return data[:at] + data[at + length :]
    if kind == 6:
        other = rng.randrange(len(data))
        return data[:at] + data[other : other + length] + data[at + length :]
    return data[:at] + rng.randbytes(length) + data[at:]


def mutated_json(value: Any, rng: random.Random) -> Any:
    """The JSON value with one place changed: replaced, gone, renamed, or nested too deeply."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    container, key = rng.choice(places)
    kind = rng.randrange(10)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice(("x", "\x1b[2J", "y" * 3000, ""))] = container.pop(key)
    elif kind == 2:
        container[key] = nested(rng.choice((50, 3000)))
    elif kind == 3 and isinstance(container[key], (int, float)):
        container[key] = container[key] * rng.choice((-1, 2, 10, 1000)) + rng.choice((0, 1, -1))
    else:
        container[key] = copy.deepcopy(rng.choice(NASTY))
    return value


def nested(depth: int) -> list:
    """Lists in lists."""
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def dumps(value: Any) -> str:
    """JSON of what may be nested deeper than `json.dumps` goes."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 100_000


# ---------------------------------------------------------------- what became of it

GOOD, TOLD, CHANGED, BARE, SLOW, FOREIGN = "good", "told", "changed", "bare", "slow", "foreign"
# texts that are not ours: torch's advice, Python's and other libraries' words, addresses
NOT_OURS = re.compile(
    r"weights_only|torch\.load|Traceback|0x[0-9a-f]{6}|object at|PytorchStreamReader|"
    r"validation error|pydantic|Expecting|codec can't|unhashable|not subscriptable|magic string|"
    r"HeaderTooLarge|InvalidHeader|MetadataIncomplete|cannot identify image"
)


@dataclass
class Tally:
    """Outcomes of many mutations; `worst` has the first of each bad kind."""

    kind: str
    counts: Counter = field(default_factory=Counter)
    skipped: int = 0  # loads that left a record out, in a sentence
    worst: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: str, number: int, detail: str = "") -> None:
        """Count one mutation."""
        self.counts[outcome] += 1
        if outcome not in (GOOD, TOLD):
            self.worst.setdefault(outcome, f"mutation {number}: {detail}")

    @property
    def failures(self) -> int:
        return sum(self.counts[kind] for kind in (CHANGED, BARE, SLOW, FOREIGN))

    def __str__(self) -> str:
        total, told = sum(self.counts.values()), self.counts[TOLD]
        without = self.counts[GOOD] - self.skipped
        return (
            f"{self.kind}: {total} mutations, {told} refused in a sentence, {self.skipped} with a "
            f"record left out in a sentence, {without} without effect, {self.counts[CHANGED]} "
            f"silent changes, {self.counts[BARE]} other exceptions, {self.counts[SLOW]} over "
            f"{LONGEST:g} s, {self.counts[FOREIGN]} foreign messages"
        )


class TooSlow(BaseException):
    """A load that was stopped."""


@contextmanager
def limited() -> Iterator[None]:
    """Stop what takes too long, where the system can."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(
    tally: Tally,
    number: int,
    load: Callable[[], Any],
    unchanged: Callable[[Any], bool],
    own: tuple[type[Exception], ...],
) -> None:
    """Load, and count what happened.

    unchanged   whether what was loaded is as good as the original
    own         the errors that a person is meant to read
    """
    started = time.monotonic()
    try:
        with limited():
            found = load()
    except own as error:
        ours = sentence(str(error))
        tally.add(TOLD if ours else FOREIGN, number, f"{type(error).__name__}: {error}"[:400])
    except TooSlow:
        tally.add(SLOW, number, f"{time.monotonic() - started:.1f} s")
    except Exception as error:
        tally.add(BARE, number, f"{type(error).__name__}: {error}"[:400])
    else:
        tally.add(GOOD if unchanged(found) else CHANGED, number)


def sentence(message: str) -> bool:
    """Whether a message is in words of this pack: no control characters, bounded, no other
    program's words."""
    short = 10 < len(message) < 2000
    return short and message.isprintable() and not NOT_OURS.search(message)
