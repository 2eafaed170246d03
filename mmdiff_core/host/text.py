"""Vision-augmented text (MM-Diff, section 3.1): the class noun before each marker becomes noun +
subject.

The noun is replaced by a tensor token, which ComfyUI's text encoders accept as they are, so prompt
weights, long prompts and embeddings keep working and no forward is patched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..config import MMDiffConfig
from ..method.subjects import PromptSubject, Subjects, name_key
from ..untrusted import quoted
from .models import LoadedMMDiff, add_patches_strictly, lora_patches
from .nouns import MARKER, Noun, Tokens


def bind(nouns: Sequence[Noun], subjects: Subjects) -> tuple[PromptSubject, ...]:
    """The subject of every noun. A name is that of a subject, whatever its case; `<|subj|>` takes
    the next one that nobody names.

    ValueError for a name that no subject has, with those there are, and for more or fewer
    `<|subj|>` than subjects left for them. Where names are used alone, a subject may go
    unmentioned.
    """
    known = {name_key(s.name): s for s in subjects}
    for noun in nouns:
        if noun.name and name_key(noun.name) not in known:
            there = _some([s.name for s in subjects])
            raise ValueError(
                f"the prompt names <|{quoted(noun.name)[1:-1]}|> (after {quoted(noun.word)}), but "
                f"no subject has that name; available: {there}. Use a name set on MM-Diff Subject "
                f"Encoder, or {MARKER} for the next subject"
            )
    named = {name_key(noun.name) for noun in nouns if noun.name}
    left = [s for s in subjects if name_key(s.name) not in named]
    in_order = [noun for noun in nouns if not noun.name]
    if len(in_order) != len(left) and (in_order or not named):
        rest = " not named by a marker" if named else ""
        after = _some([noun.word for noun in in_order])
        raise ValueError(
            f"the prompt has {len(in_order)} {MARKER} marker{'s' * (len(in_order) != 1)} (after: "
            f"{after}) for {len(left)} "
            f"subject{'s' * (len(left) != 1)}{rest} ({_some([s.name for s in left])}); write one "
            f"{MARKER} right after each subject's noun, or the subject's name as in 'a "
            "man<|alan|>'"
        )
    turns = iter(left)
    return tuple(known[name_key(noun.name)] if noun.name else next(turns) for noun in nouns)


def _some(words: Sequence[str], most: int = 10) -> str:
    """Words for a message: at most ten, none of them long."""
    cut = [word if len(word) <= 60 else f"{word[:57]}..." for word in words[:most]]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return (", ".join(cut) or "none") + more


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
    fused = {encoder: list(map(list, chunks)) for encoder, chunks in tokens.items()}
    clip.load_model()
    for encoder, chunks in fused.items():
        spots = [
            (noun.places[encoder], s)
            for noun, s in zip(nouns, subjects, strict=True)
            if noun.places[encoder][0] < len(chunks)
        ]
        if spots:
            _fuse(clip, mmdiff, encoder, chunks, spots)
    return fused


def _fuse(clip, mmdiff: LoadedMMDiff, encoder: str, chunks: list[list[tuple]], spots: list) -> None:
    """Put the fused words [width] into one encoder's chunks."""
    with torch.no_grad():
        words = torch.stack(
            [word_embedding(clip, encoder, chunks[c][p][0]).cpu() for (c, p), _ in spots]
        )
    vectors = torch.stack([s.subject.words[encoder] for _, s in spots])
    with mmdiff.loaded() as (modules, device):
        rows = modules.fuse_words(encoder, words.to(device), vectors.to(device)).float().cpu()
    for ((c, p), _), row in zip(spots, rows, strict=True):
        chunks[c][p] = (row, *chunks[c][p][1:])


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
