"""Factors on single layers' image branch, as a person writes them: "input 0.5, middle 0, output.3
1.2".

A name is a part (input, middle, output), a block of it (output.3), or one layer of a block
(output.3.1); "all" is every layer. The most exact name counts; layers that no name covers have 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ..bases import Slot, TransformerBlock
from ..untrusted import quoted

MAX_FACTOR = 10.0
NAME = re.compile(r"[a-z]+(\.[0-9]{1,3}){0,2}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
LONGEST = 10_000  # characters


def entries(text: str, what: str) -> list[str]:
    """The parts of a text between commas or lines. ValueError for a text that no model needs."""
    if len(text) > LONGEST:
        raise ValueError(f"{what} is {len(text)} characters long, at most {LONGEST}")
    parts = text.replace(";", ",").replace("\n", ",").split(",")
    return [part.strip() for part in parts if part.strip()]


def parse_layer_weights(text: str) -> dict[str, float]:
    """Names and factors (0..10) separated by commas or lines. ValueError names the entry that
    cannot be read."""
    found: dict[str, float] = {}
    for entry in entries(text, "layer_weights"):
        name, factor = _parsed(entry)
        if not 0 <= factor <= MAX_FACTOR:
            raise ValueError(
                f"layer weight {quoted(entry)}: expected a number from 0 to {MAX_FACTOR:g}"
            )
        if name in found:
            raise ValueError(f"layer weight {name!r} is given twice; write it once")
        found[name] = factor
    return found


def _parsed(entry: str) -> tuple[str, float]:
    """Name and factor of "input 0.5", "input: 0.5" or "input=0.5"."""
    parts = entry.replace("=", ":").split(":") if {":", "="} & set(entry) else entry.split()
    parts = [part.strip() for part in parts]
    if len(parts) != 2 or not NAME.fullmatch(parts[0]) or not NUMBER.fullmatch(parts[1]):
        raise ValueError(
            f"layer weight {quoted(entry)} is not understood; write a name and a number: "
            '"input 0.5, middle 0, output.3 1.2"'
        )
    return parts[0], float(parts[1])


def layer_names(blocks: Sequence[TransformerBlock]) -> dict[Slot, tuple[str, ...]]:
    """What every layer can be called, from the widest name to the most exact."""
    return {
        block.slot: (
            "all",
            block.block,
            f"{block.block}.{block.id}",
            f"{block.block}.{block.id}.{block.index}",
        )
        for block in blocks
    }


def check_names(wanted: Collection[str], blocks: Sequence[TransformerBlock], what: str) -> None:
    """ValueError for a name that no layer of this model has, with those it has."""
    known = {name for own in layer_names(blocks).values() for name in own}
    if unknown := sorted(set(wanted) - known):
        wide = sorted(name for name in known if name.count(".") < 2)
        raise ValueError(
            f"{what} {quoted(unknown[0])}: this model has no such layer; it has {', '.join(wide)}, "
            f"and single layers as {'.'.join(map(str, blocks[-1].slot))}"
        )


def named_layers(text: str, blocks: Sequence[TransformerBlock]) -> frozenset[Slot]:
    """The layers that a list of names covers: "middle, output.1". ValueError for a name that no
    layer has."""
    wanted = set(entries(text, "layers"))
    check_names(wanted, blocks, "layer")
    return frozenset(slot for slot, own in layer_names(blocks).items() if wanted & set(own))


def layer_factors(text: str, blocks: Sequence[TransformerBlock]) -> dict[Slot, float]:
    """The factor of every layer. ValueError for a name that no layer of this model has, with those
    it has."""
    wanted = parse_layer_weights(text)
    check_names(wanted, blocks, "layer weight")
    names = layer_names(blocks)
    factors = {}
    for slot, own in names.items():
        factors[slot] = next((wanted[name] for name in reversed(own) if name in wanted), 1.0)
    return factors
