"""Markers in a prompt, and the nouns before them.

A marker is `<|name|>`, which names a subject, or `<|subj|>`, which takes the next subject that no
marker names. Its noun is the token before it, as in the official code; what that token reads as is
worked out from the text as ComfyUI's tokenizer reads it, without the brackets of prompt weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unicodedata import category

import torch
from comfy import sd1_clip
from torch import Tensor

from ..method.subjects import NEXT
from ..untrusted import quoted

MARKER = f"<|{NEXT}|>"
MARKERS = re.compile(r"<\|([^|<>]*)\|>")
GLUED = re.compile(r"[A-Za-z0-9_]{1,40}")
SENTINEL = "<|startoftext|>"  # one token id that never stands inside a prompt
SENTINEL_ID = 49406
EMBEDDING = "embedding:"
MOST_BRACKETS = 200  # inside one another; ComfyUI reads each pair in a call of its own
CONTRACTIONS = ("s", "t", "re", "ve", "m", "ll", "d")  # CLIP's tokenizer: "man's" is "man" and "'s"

Tokens = dict[str, list[list[tuple]]]
TokenPosition = tuple[int, int]  # (chunk, position in the chunk)


@dataclass(frozen=True)
class Noun:
    """Where one mention of a subject stands, how its class noun reads, and whom its marker names
    ("" = the next in order)."""

    word: str
    places: dict[str, TokenPosition]  # by encoder
    name: str = ""


def check_markers(text: str) -> None:
    """ValueError for a marker without a name, with text glued to its end, or without its end."""
    for marker in MARKERS.finditer(text):
        if not marker[1].strip():
            raise ValueError(
                f"{marker[0][:20]!r} is empty; write {MARKER}, or a subject's name as in 'a "
                "man<|alan|>'"
            )
        if glued := GLUED.match(text, marker.end()):
            raise ValueError(
                f"{shown(marker[0])} is followed directly by {glued[0]!r}; put a space or "
                "punctuation after the marker"
            )
    rest = MARKERS.sub(" ", text)
    at = min((i for i in (rest.find("<|"), rest.find("|>")) if i >= 0), default=-1)
    if at >= 0:
        raise ValueError(
            f"the prompt has an incomplete marker at {quoted(rest[max(0, at - 10) : at + 20])}; a "
            f"marker is {MARKER}, or a subject's name as in 'a man<|alan|>'"
        )


def check_negative(text: str) -> None:
    """ValueError for a negative prompt with a marker."""
    if found := MARKERS.search(text):
        raise ValueError(
            f"{shown(found[0])} belongs in the positive prompt only; the negative prompt takes no "
            "markers"
        )


def shown(marker: str) -> str:
    """A marker, or the beginning of a long one, for a message."""
    return f"<|{quoted(marker[2:-2])[1:-1]}|>"


def without_markers(text: str) -> str:
    """A prompt as people would read it. ValueError as `check_markers`."""
    check_markers(text)
    glued = re.compile(r"\w")
    return MARKERS.sub(lambda m: " " if glued.match(text, m.end()) else "", text)


def find_nouns(tokenize: Callable[..., Tokens], text: str) -> tuple[str, tuple[Noun, ...]]:
    """The text without markers, and the noun before each marker, in reading order.

    `tokenize(text, return_word_ids=True)` is CLIP.tokenize. Raises ValueError for a marker without
    a noun before it, and as `check_markers`. Scripts that are written without spaces may go on
    right after a marker: it parts the words.
    """
    clean, markers = without_markers(text), list(MARKERS.finditer(text))
    if not markers:
        return clean, ()
    with_sentinels = MARKERS.sub(f" {SENTINEL} ", text)
    plain = read(tokenize, clean)
    marked = read(tokenize, with_sentinels)
    words = words_before(with_sentinels)
    found = {encoder: _places(plain[encoder], marked[encoder], encoder) for encoder in plain}
    nouns = []
    for i, (marker, word) in enumerate(zip(markers, words, strict=True)):
        places = {encoder: found[encoder][i] for encoder in found}
        check_noun(word, places, plain, shown(marker[0]))
        nouns.append(Noun(word, places, "" if marker[0] == MARKER else marker[1].strip()))
    return clean, tuple(nouns)


def read(tokenize: Callable[..., Tokens], text: str) -> Tokens:
    """The tokens of a text. ValueError for brackets so deep that the tokenizer would give up."""
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > MOST_BRACKETS:
        raise ValueError(
            f"the prompt has {deepest} brackets inside one another, at most {MOST_BRACKETS}; close "
            "them earlier"
        )
    return tokenize(text, return_word_ids=True)


def words_before(text: str) -> list[str]:
    """What stands before each sentinel of a text that the tokenizer can read; "" for nothing."""
    segments = [part for part, _ in sd1_clip.token_weights(sd1_clip.escape_important(text), 1.0)]
    spoken = " ".join(sd1_clip.unescape_important(part) for part in segments)
    return [last_word(part) for part in spoken.split(SENTINEL)[:-1]]


def last_word(text: str) -> str:
    """The last part of a text by CLIP's tokenizer: an embedding, letters with their marks, one
    digit, "'s" and its like, or signs."""
    text = text.rstrip()
    if not text:
        return ""
    chunk = text[max((text.rfind(space) for space in " \n\t"), default=-1) + 1 :]
    if chunk.startswith(EMBEDDING):
        return chunk
    kind, start = _kind(text[-1]), len(text) - 1
    while kind != "N" and start > 0 and _kind(text[start - 1]) == kind:
        start -= 1
    if text[start:].casefold() in CONTRACTIONS and text[:start].endswith(("'", "’")):
        start -= 1
    return text[start:]


def _kind(character: str) -> str:
    """L = letters and marks on them, N = numbers, S = signs, blank = spaces."""
    if character.isspace():
        return " "
    return {"L": "L", "M": "L", "N": "N"}.get(category(character)[0], "S")


def check_noun(
    word: str, places: dict[str, TokenPosition | None], tokens: Tokens, marker: str
) -> None:
    """ValueError where the token before a marker is not a noun's."""
    advice = f"write it right after the class noun, as in 'a man{marker}'"
    if not word or None in places.values():
        raise ValueError(f"a {marker} has no word before it; {advice}")
    if word.startswith(EMBEDDING):
        fused = [tokens[encoder][c][p][0] for encoder, (c, p) in places.items()]
        if not all(torch.is_tensor(token) for token in fused):
            raise ValueError(
                f"{quoted(word)} before {marker} is not one of the embeddings in "
                f"models/embeddings, or not in all text encoders; {advice}"
            )
    elif _kind(word[0]) == "S":
        raise ValueError(f"a {marker} stands after {quoted(word)}, which is not a word; {advice}")


def _places(
    plain: list[list[tuple]], marked: list[list[tuple]], encoder: str
) -> list[TokenPosition | None]:
    """The last token before each sentinel, as its place among the plain tokens; None where there is
    no token before it."""
    stream = [(place, token) for place, token in _content(plain)]
    places, count = [], 0
    for _, token in _content(marked):
        if _is(token, SENTINEL_ID):
            places.append(stream[count - 1][0] if count else None)
        elif count < len(stream) and _same(token, stream[count][1]):
            count += 1
        else:
            raise ValueError(
                "the prompt is tokenized differently with and without its markers (encoder "
                f"{encoder}); put spaces around the words next to the markers"
            )
    return places


def _content(chunks: Sequence[Sequence[tuple]]) -> list[tuple[TokenPosition, int | Tensor]]:
    return [
        ((c, p), entry[0])
        for c, chunk in enumerate(chunks)
        for p, entry in enumerate(chunk)
        if entry[2] != 0
    ]


def _is(token, number: int) -> bool:
    return not torch.is_tensor(token) and not isinstance(token, dict) and int(token) == number


def _same(a, b) -> bool:
    if torch.is_tensor(a) or torch.is_tensor(b):
        return torch.is_tensor(a) and torch.is_tensor(b) and a.shape == b.shape
    return a == b
