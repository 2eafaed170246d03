"""Values of strangers in messages and records."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated

import pytest
from pydantic import Field

from mmdiff_core.bases import BASES, Base
from mmdiff_core.untrusted import STRICT, fill, listed, load_json, plain, quoted

from support.mutations import NASTY, dumps, nested, sentence


@pytest.mark.parametrize("value", [*NASTY, nested(5000), {"a" * 9000: nested(9)}, ["x" * 999] * 99])
def test_whatever_is_quoted_is_short_and_printable(value):
    for shown in (quoted(value), listed([value] * 9), plain(str(dumps(value))[:9999])):
        assert shown.isprintable() and len(shown) < 900


@pytest.mark.parametrize("value", NASTY)
def test_a_json_value_comes_back_or_is_told(value):
    text = dumps({"a": value})
    try:
        found = load_json(text, "the file")
    except ValueError as error:
        assert str(error).startswith("the file is") and sentence(str(error))
    else:
        assert json.dumps(found) == json.dumps({"a": value})


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 100_000, b'{"a": 1, "a": 2}', b"\xff\xfe", b"NaN", b"9" * 5000]
)
def test_what_is_no_json_is_told_in_own_words(text):
    with pytest.raises(ValueError, match="^the file is ") as error:
        load_json(text, "the file")
    assert sentence(str(error.value))
    with pytest.raises(ValueError, match="expected at most 2"):
        load_json(b"[1]", "the file", most=2)


@dataclass(frozen=True)
class Inner:
    __pydantic_config__ = STRICT
    share: Annotated[float, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True)
class Outer:
    __pydantic_config__ = STRICT
    count: int
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count == 13:
            raise ValueError("13 is not allowed")


@pytest.mark.parametrize(
    "values, told",
    [
        ({}, r"it lacks the fields \['count'\]"),
        ({"count": 1, "cuont": 2}, r"it has unknown fields \['cuont'\]; known are"),
        ({"count": "1"}, "it has count '1', expected a whole number"),
        ({"count": True}, "it has count True"),
        ({"count": 1, "inner": {"share": 2}}, "it has inner.share 2, expected a number up to 1"),
        ({"count": 1, "inner": {"x": 2}}, r"section 'inner' has unknown fields \['x'\]"),
        ({"count": 1, "names": "abc"}, "it has names 'abc', expected a list"),
        ({"count": 13}, "it is wrong: 13 is not allowed"),
        (None, "it is None, expected an object"),
        ({"count": 1, "names": nested(5000)}, "nested too deeply"),
    ],
)
def test_a_record_says_what_does_not_fit_it(values, told):
    with pytest.raises(ValueError, match=told) as error:
        fill(Outer, values, "it")
    assert sentence(str(error.value))


def test_lists_become_tuples_and_whole_numbers_become_fractions():
    found = fill(Outer, {"count": 1, "inner": {"share": 1}, "names": ["a"]}, "it")
    assert found == Outer(1, Inner(1.0), ("a",)) and type(found.inner.share) is float


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_ratio": 0},
        {"mlp_ratio": 10**9},
        {"mlp_ratio": "4"},
        {"unet": []},
        {"unet": "x"},
        {"unet": [["input", 1, 10**6, 64]]},
        {"unet": [["elsewhere", 1, 1, 8]]},
        {"unet": [["input", 1, 1, 8], ["input", 1, 1, 8]]},
        {"unet": [["input", i, 256, 8] for i in range(9)]},
        {"text": []},
        {"text": [{"name": "l"}]},
        {"text": [{"name": "\x1b", "width": 8, "depth": 1}]},
        {"image": {"width": 8, "cls_width": 8, "depth": 2, "patch": 64, "size": 32}},
        {"context_width": 10**30},
        {"more": 1},
    ],
)
def test_a_base_of_impossible_sizes_is_refused(changes):
    record = json.loads(BASES["sdxl"].to_json()) | changes
    with pytest.raises(ValueError, match="record of the base model cannot be read") as error:
        Base.from_json(json.dumps(record))
    assert sentence(str(error.value))
