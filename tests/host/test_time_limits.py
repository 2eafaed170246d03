"""Texts are read in a time that grows with their length, not with its square, and are bounded."""

from __future__ import annotations

import inspect
import time

import pytest
from comfy_api.latest import io

from mmdiff_core.host.nouns import check_markers, words_before
from mmdiff_core.method.subjects import numbers
from mmdiff_core.regions.boxes import MOST_BOXES, parse_boxes
from mmdiff_core.regions.layer_weights import entries, parse_layer_weights

from support.every_node import right_values, schema_of, widgets

LIMIT = 1.0  # seconds; the quadratic ones took 20 and more
PIECES = (
    " ", "\t", "\n", "1", "a", "(", ")", "<", "|", ">", "<|", "|>", "<|a", "<|a|>", "a<|a|> ",
    ",", "1,", "a ", "'", "-", ".", ":", "=", "[", "{", "\\", "a1", "1.", "input ", "é", "\u0301",
    '{"a":', '[{},', '"', "e", "input 1,", "(a:1.1)",
)  # fmt: skip
READERS = {
    "layer_weights": parse_layer_weights,
    "layers": lambda text: entries(text, "layers"),
    "boxes": parse_boxes,
    "numbers": lambda text: numbers(text, "weights", 10),
    "markers": check_markers,
    "words": words_before,
}


def took(read, text: str) -> float:
    start = time.process_time()
    try:
        read(text)
    except (ValueError, RecursionError) as error:
        assert len(str(error)) < 1000
    return time.process_time() - start


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("count", [12_000, 100_000])
def test_no_text_keeps_a_reader_busy(reader, count):
    for piece in PIECES:
        for text in (piece * (count // len(piece)), "input" + piece * (count // len(piece)) + "x"):
            assert took(READERS[reader], text) < LIMIT, repr(piece)


def is_text(kind: str, name: str) -> bool:
    return any(
        item.id == name and isinstance(item, io.String.Input) for item in schema_of(kind).inputs
    )


TEXTS = [(kind, name) for kind, name in widgets() if is_text(kind, name)]


@pytest.mark.parametrize("kind, name", TEXTS, ids=lambda x: x.removeprefix("MMDiff"))
def test_no_text_keeps_the_server_busy_while_it_validates(host, kind, name):
    node = host.classes[kind]
    if "validate_inputs" not in vars(node):
        return
    known = set(inspect.signature(node.validate_inputs).parameters)
    if name not in known:
        return
    rest = {k: v for k, v in right_values(kind).items() if k in known}
    for piece in PIECES:
        text = "input" + piece * (12_000 // len(piece)) + "x"
        assert took(lambda text: node.validate_inputs(**(rest | {name: text})), text) < LIMIT, piece


def test_boxes_are_bounded_and_the_message_says_so():
    box = '{"subject": 1, "x": 0, "y": 0, "width": 0.5, "height": 1}'
    assert len(parse_boxes(f"[{','.join([box] * MOST_BOXES)}]")) == MOST_BOXES
    with pytest.raises(ValueError, match="boxes has 101 boxes, at most 100; delete some"):
        parse_boxes(f"[{','.join([box] * (MOST_BOXES + 1))}]")
