"""Vision-augmented text (MM-Diff, section 3.1): the class noun before each `<|subj|>` becomes noun + subject.

The noun is found by token id and replaced by a tensor token, which ComfyUI's text encoders accept as they are, so prompt
weights, long prompts and embeddings keep working and no forward is patched.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import MMDiffConfig
from ..subjects import Subjects
from .models import LoadedMMDiff, add_patches_strictly, lora_patches

MARKER = "<|subj|>"
SENTINEL = "<|startoftext|>"        # one token id that never stands inside a prompt
SENTINEL_ID = 49406

Tokens = dict[str, list[list[tuple]]]
Place = tuple[int, int]             # (chunk, position in the chunk)


@dataclass(frozen=True)
class Noun:
    """Where one subject's class noun stands, and how it reads."""

    word: str
    places: dict[str, Place]        # by encoder


def find_nouns(tokenize: Callable[..., Tokens], text: str) -> tuple[str, tuple[Noun, ...]]:
    """The text without markers, and the noun before each marker, in reading order.

    `tokenize(text, return_word_ids=True)` is CLIP.tokenize. Raises ValueError for a marker without a word before it or
    with text glued to its end.
    """
    clean = text.replace(MARKER, "")
    if MARKER not in text:
        return clean, ()
    if glued := re.search(re.escape(MARKER) + r"(\w+)", text):
        raise ValueError(f"{MARKER} is followed directly by {glued[1]!r}; put a space or punctuation after the marker")
    plain, marked = tokenize(clean, return_word_ids=True), tokenize(text.replace(MARKER, f" {SENTINEL} "), return_word_ids=True)
    words = [_word_before(before) for before in text.split(MARKER)[:-1]]
    found = {encoder: _places(plain[encoder], marked[encoder], encoder) for encoder in plain}
    return clean, tuple(Noun(word, {e: found[e][i] for e in found}) for i, word in enumerate(words))


def _word_before(text: str) -> str:
    match = re.search(r"(\w[\w'-]*)\W*$", text)
    if match is None:
        raise ValueError(f"a {MARKER} has no word before it; write it right after the class noun, as in 'a man{MARKER}'")
    return match[1]


def _places(plain: list[list[tuple]], marked: list[list[tuple]], encoder: str) -> list[Place]:
    """The last token before each sentinel, as its place among the plain tokens."""
    stream = [(place, token) for place, token in _content(plain)]
    places, count = [], 0
    for _, token in _content(marked):
        if _is(token, SENTINEL_ID):
            places.append(stream[count - 1][0])
        elif count < len(stream) and _same(token, stream[count][1]):
            count += 1
        else:
            raise ValueError(f"the text reads differently with and without {MARKER} (encoder {encoder}); "
                             f"put spaces around the words next to the markers")
    return places


def _content(chunks: list[list[tuple]]) -> list[tuple[Place, int | Tensor]]:
    return [((c, p), entry[0]) for c, chunk in enumerate(chunks) for p, entry in enumerate(chunk) if entry[2] != 0]


def _is(token, number: int) -> bool:
    return not torch.is_tensor(token) and not isinstance(token, dict) and int(token) == number


def _same(a, b) -> bool:
    if torch.is_tensor(a) or torch.is_tensor(b):
        return torch.is_tensor(a) and torch.is_tensor(b) and a.shape == b.shape
    return a == b


def check_counts(nouns: Sequence[Noun], subjects: Subjects) -> None:
    """As many markers as subjects, or a ValueError with both counts."""
    if len(nouns) != len(subjects):
        names = ", ".join(s.name for s in subjects) or "none"
        words = ", ".join(n.word for n in nouns) or "none"
        raise ValueError(
            f"the prompt has {len(nouns)} {MARKER} marker{'s' * (len(nouns) != 1)} (after: {words}), but {len(subjects)} "
            f"subject{'s' * (len(subjects) != 1)} came in ({names}); write one {MARKER} right after each subject's noun"
        )


def adapted_clip(clip, mmdiff: LoadedMMDiff, behaviour: str, strength: float = 1.0):
    """A clone of CLIP with the adapter's text LoRA; "released" leaves the second encoder alone (quirk 1)."""
    config = mmdiff.config
    check_text_encoders(clip, config)
    encoders = config.encoders[:1] if behaviour == "released" else config.encoders
    keys = {
        name: f"clip_{encoder}.transformer.text_model.encoder.{rest}.weight"
        for name in mmdiff.adapter.text for encoder, rest in [name.split(".", 1)] if encoder in encoders
    }
    clone = clip.clone()
    if strength != 0:
        add_patches_strictly(clone.patcher, lora_patches(mmdiff.adapter.text, keys), strength, "the text encoder")
    return clone


def check_text_encoders(clip, config: MMDiffConfig) -> None:
    """ValueError when CLIP does not have the adapter's text encoders."""
    found = {e: _table(clip, e).weight.shape[-1] for e in ("l", "g") if hasattr(clip.cond_stage_model, f"clip_{e}")}
    if found != dict(config.text_widths):
        raise ValueError(
            f"CLIP has the text encoders {found or type(clip.cond_stage_model).__name__}, {config.name} needs "
            f"{dict(config.text_widths)}; connect the CLIP of the checkpoint that the adapter was made for"
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


def fuse_tokens(clip, mmdiff: LoadedMMDiff, tokens: Tokens, nouns: Sequence[Noun], subjects: Subjects) -> Tokens:
    """The tokens with every noun fused with its subject. Places that a (negative) prompt does not have are left out."""
    fused = {encoder: [list(chunk) for chunk in chunks] for encoder, chunks in tokens.items()}
    clip.load_model()
    for encoder, chunks in fused.items():
        spots = [(noun.places[encoder], s) for noun, s in zip(nouns, subjects, strict=True) if noun.places[encoder][0] < len(chunks)]
        if not spots:
            continue
        with torch.no_grad():
            words = torch.stack([word_embedding(clip, encoder, chunks[c][p][0]).cpu() for (c, p), _ in spots])
        vectors = torch.stack([s.words[encoder] for _, s in spots])
        with mmdiff.loaded() as (modules, device):
            rows = modules.fuse_words(encoder, words.to(device), vectors.to(device)).float().cpu()
        for ((c, p), _), row in zip(spots, rows, strict=True):
            chunks[c][p] = (row, *chunks[c][p][1:])
    return fused


def encode(clip, tokens: Tokens) -> list:
    """Tokens -> CONDITIONING. The pooled output is read at the prompt's end token, also when a fused row stands on or after it."""
    conditioning = clip.encode_from_tokens_scheduled(tokens)
    encoder = "g" if "g" in tokens else "l"
    chunk = tokens[encoder][0]
    end = next((p for p, entry in enumerate(chunk) if entry[2] == 0 and p > 0), len(chunk))
    if any(torch.is_tensor(entry[0]) for entry in chunk[end:]):
        pooled = _pooled_at(clip, encoder, chunk, end)
        for _, options in conditioning:
            options["pooled_output"] = pooled.to(options["pooled_output"])
    return conditioning


def _pooled_at(clip, encoder: str, chunk: list, position: int) -> Tensor:
    """The projected state at a position of the chunk, [1 width].

    The host counts every tensor token as text, so a fused row in the padding would move the place it reads. Only the released
    behaviour puts one there: its negative prompt is fused at the positive's places, whatever stands there (quirk 2).
    """
    model = getattr(clip.cond_stage_model, f"clip_{encoder}")
    with torch.no_grad():
        embeds, mask, *_ = model.process_tokens([[entry[0] for entry in chunk]], clip.patcher.load_device)
        _, _, projected, raw = model.transformer(
            None, embeds=embeds, num_tokens=[position + 1], dtype=torch.float32,
        )
    return (projected if model.return_projected_pooled else raw).float().cpu()
