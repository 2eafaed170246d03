"""Vision-augmented text (MM-Diff, section 3.1): the class noun before each marker becomes noun +
subject.

A marker is `<|name|>`, which names a subject, or `<|subj|>`, which takes the next subject that no
marker names.

The noun is found by token id and replaced by a tensor token, which ComfyUI's text encoders accept
as they are, so prompt weights, long prompts and embeddings keep working and no forward is patched.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..config import MMDiffConfig
from ..method.subjects import PromptSubject, Subjects, name_key
from .models import LoadedMMDiff, add_patches_strictly, lora_patches

MARKER = "<|subj|>"
MARKERS = re.compile(r"<\|([^|<>]*)\|>")
SENTINEL = "<|startoftext|>"  # one token id that never stands inside a prompt
SENTINEL_ID = 49406

Tokens = dict[str, list[list[tuple]]]
TokenPosition = tuple[int, int]  # (chunk, position in the chunk)


@dataclass(frozen=True)
class Noun:
    """Where one mention of a subject stands, how its class noun reads, and whom its marker names
    ("" = the next in order)."""

    word: str
    places: dict[str, TokenPosition]  # by encoder
    name: str = ""


def find_nouns(tokenize: Callable[..., Tokens], text: str) -> tuple[str, tuple[Noun, ...]]:
    """The text without markers, and the noun before each marker, in reading order.

    `tokenize(text, return_word_ids=True)` is CLIP.tokenize. Raises ValueError for a marker without
    a word before it, without a name in it, or with text glued to its end. Scripts that are written
    without spaces may go on right after a marker: it parts the words.
    """
    for marker in MARKERS.finditer(text):
        if not marker[1].strip():
            raise ValueError(
                f"{marker[0]!r} is empty; write {MARKER}, or a subject's name as in 'a man<|alan|>'"
            )
        if glued := re.match(r"[A-Za-z0-9_]+", text[marker.end() :]):
            raise ValueError(
                f"{marker[0]} is followed directly by {glued[0]!r}; put a space or punctuation "
                "after the marker"
            )
    clean = MARKERS.sub(lambda m: " " if re.match(r"\w", text[m.end() : m.end() + 1]) else "", text)
    if not MARKERS.search(text):
        return clean, ()
    plain = tokenize(clean, return_word_ids=True)
    marked = tokenize(MARKERS.sub(f" {SENTINEL} ", text), return_word_ids=True)
    markers = list(MARKERS.finditer(text))
    words = [_word_before(text[: m.start()], m[0]) for m in markers]
    names = ["" if m[0] == MARKER else m[1].strip() for m in markers]
    found = {encoder: _places(plain[encoder], marked[encoder], encoder) for encoder in plain}
    nouns = []
    for i, (word, name) in enumerate(zip(words, names, strict=True)):
        nouns.append(Noun(word, {encoder: found[encoder][i] for encoder in found}, name))
    return clean, tuple(nouns)


def _word_before(text: str, marker: str) -> str:
    match = re.search(r"(\w[\w'-]*)\W*$", MARKERS.sub(" ", text))
    directly = re.sub(r"[\s()\[\]{}:.,]+$", "", text)
    if match is None or directly.endswith("|>"):
        raise ValueError(
            f"a {marker} has no word before it; write it right after the class noun, as in 'a "
            f"man{marker}'"
        )
    return match[1]


def _places(
    plain: list[list[tuple]], marked: list[list[tuple]], encoder: str
) -> list[TokenPosition]:
    """The last token before each sentinel, as its place among the plain tokens."""
    stream = [(place, token) for place, token in _content(plain)]
    places, count = [], 0
    for _, token in _content(marked):
        if _is(token, SENTINEL_ID):
            places.append(stream[count - 1][0])
        elif count < len(stream) and _same(token, stream[count][1]):
            count += 1
        else:
            raise ValueError(
                "the prompt is tokenized differently with and without its markers (encoder "
                f"{encoder}); put spaces around the words next to the markers"
            )
    return places


def _content(chunks: list[list[tuple]]) -> list[tuple[TokenPosition, int | Tensor]]:
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


def bind(nouns: Sequence[Noun], subjects: Subjects) -> tuple[PromptSubject, ...]:
    """The subject of every noun. A name is that of a subject, whatever its case; `<|subj|>` takes
    the next one that nobody names.

    ValueError for a name that no subject has, with those there are, and for more or fewer
    `<|subj|>` than subjects left for them. Where names are used alone, a subject may go
    unmentioned.
    """
    known = {name_key(s.name): s for s in subjects}
    there = ", ".join(s.name for s in subjects) or "none"
    for noun in nouns:
        if noun.name and name_key(noun.name) not in known:
            raise ValueError(
                f"the prompt names <|{noun.name}|> (after {noun.word!r}), but no subject has that "
                f"name; available: {there}. Use a name set on MM-Diff Subject Encoder, or {MARKER} "
                "for the next subject"
            )
    named = {name_key(noun.name) for noun in nouns if noun.name}
    left = [s for s in subjects if name_key(s.name) not in named]
    inorder = [noun for noun in nouns if not noun.name]
    if len(inorder) != len(left) and (inorder or not named):
        words = ", ".join(n.word for n in inorder) or "none"
        rest = " not named by a marker" if named else ""
        raise ValueError(
            f"the prompt has {len(inorder)} {MARKER} marker{'s' * (len(inorder) != 1)} (after: "
            f"{words}) for {len(left)} subject{'s' * (len(left) != 1)}{rest} "
            f"({', '.join(s.name for s in left) or 'none'}); write one {MARKER} right after each "
            "subject's noun, or the subject's name as in 'a man<|alan|>'"
        )
    turns = iter(left)
    return tuple(known[name_key(noun.name)] if noun.name else next(turns) for noun in nouns)


def adapted_clip(clip, mmdiff: LoadedMMDiff, behaviour: str, strength: float = 1.0):
    """A clone of CLIP with the adapter's text LoRA; "released" leaves the second encoder as it is,
    because the official code never loads that LoRA."""
    config = mmdiff.config
    check_text_encoders(clip, config)
    encoders = config.encoders[:1] if behaviour == "released" else config.encoders
    keys = {
        name: f"clip_{encoder}.transformer.text_model.encoder.{rest}.weight"
        for name in mmdiff.adapter.text
        for encoder, rest in [name.split(".", 1)]
        if encoder in encoders
    }
    clone = clip.clone()
    if strength != 0:
        add_patches_strictly(
            clone.patcher, lora_patches(mmdiff.adapter.text, keys), strength, "the text encoder"
        )
    return clone


def check_text_encoders(clip, config: MMDiffConfig) -> None:
    """ValueError when CLIP does not have the adapter's text encoders."""
    parts = [name for name, _ in clip.cond_stage_model.named_children() if name.startswith("clip_")]
    encoders = [name.removeprefix("clip_") for name in parts]
    found = {encoder: _table(clip, encoder).weight.shape[-1] for encoder in encoders}
    if found != config.text_widths:
        raise ValueError(
            f"CLIP has the text encoders {found or type(clip.cond_stage_model).__name__}, "
            f"{config.name} needs {config.text_widths}; connect the CLIP of the adapter's base "
            "model"
        )


def _table(clip, encoder: str):
    return getattr(clip.cond_stage_model, f"clip_{encoder}").transformer.get_input_embeddings()


def word_embedding(clip, encoder: str, token) -> Tensor:
    """Embedding of one token [width], float32: a row of the table, or the tensor itself."""
    if torch.is_tensor(token):
        return token.float()
    table = _table(clip, encoder)
    ids = torch.tensor([int(token)], device=clip.patcher.load_device)
    return table(ids, out_dtype=torch.float32)[0]


def fuse_tokens(
    clip,
    mmdiff: LoadedMMDiff,
    tokens: Tokens,
    nouns: Sequence[Noun],
    subjects: Sequence[PromptSubject],
) -> Tokens:
    """The tokens with every noun fused with its subject (`subjects`: one for each noun). Places
    that a (negative) prompt does not have are left out."""
    fused = {encoder: [list(chunk) for chunk in chunks] for encoder, chunks in tokens.items()}
    clip.load_model()
    for encoder, chunks in fused.items():
        spots = [
            (noun.places[encoder], s)
            for noun, s in zip(nouns, subjects, strict=True)
            if noun.places[encoder][0] < len(chunks)
        ]
        if not spots:
            continue
        with torch.no_grad():
            words = torch.stack(
                [word_embedding(clip, encoder, chunks[c][p][0]).cpu() for (c, p), _ in spots]
            )
        vectors = torch.stack([s.subject.words[encoder] for _, s in spots])
        with mmdiff.loaded() as (modules, device):
            rows = modules.fuse_words(encoder, words.to(device), vectors.to(device)).float().cpu()
        for ((c, p), _), row in zip(spots, rows, strict=True):
            chunks[c][p] = (row, *chunks[c][p][1:])
    return fused


def encode(clip, tokens: Tokens) -> list:
    """Tokens -> CONDITIONING. The pooled output is read at the prompt's end token, also when a
    fused row stands on or after it."""
    encoder = "g" if "g" in tokens else next(iter(tokens))  # whose pooled output counts
    chunk = tokens[encoder][0]
    end = next((p for p, entry in enumerate(chunk) if entry[2] == 0 and p > 0), len(chunk))
    if any(torch.is_tensor(entry[0]) for entry in chunk[end:]):
        model, clip = clip.cond_stage_model, copy.copy(clip)
        clip.cond_stage_model = _PooledAtEnd(model, partial(_pooled_at, clip, encoder, chunk, end))
    return clip.encode_from_tokens_scheduled(tokens)


class _PooledAtEnd:
    """The host's text encoders, with `pooled()` [1 width] in place of their pooled output.

    The host encodes a prompt once for each part of a schedule of CLIP hooks, with other weights
    each time, so the pooled output is read while those weights are in place.
    """

    def __init__(self, model, pooled: Callable[[], Tensor]):
        self._model, self._pooled = model, pooled

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def encode_token_weights(self, tokens: Tokens) -> tuple:
        cond, pooled, *more = self._model.encode_token_weights(tokens)
        return cond, self._pooled().to(pooled), *more


def _pooled_at(clip, encoder: str, chunk: list, position: int) -> Tensor:
    """The projected state at a position of the chunk, [1 width].

    The host counts every tensor token as text, so a fused row in the padding would move the place
    it reads. Only the released behaviour puts one there: its negative prompt is fused at the
    positive's token positions, whatever token is there, as in the official code.
    """
    model = getattr(clip.cond_stage_model, f"clip_{encoder}")
    with torch.no_grad():
        embeds, mask, *_ = model.process_tokens(
            [[entry[0] for entry in chunk]], clip.patcher.load_device
        )
        _, _, projected, raw = model.transformer(
            None,
            embeds=embeds,
            num_tokens=[position + 1],
            dtype=torch.float32,
        )
    return (projected if model.return_projected_pooled else raw).float().cpu()
