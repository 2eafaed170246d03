"""A personalised prompt from texts and subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import MMDiffConfig
from ..method.subjects import PromptSubject, Subjects
from ..references.notes import look_alike_notes
from . import text as text_side
from .conditioning import BoundPrompt, against, carry, delayed
from .models import LoadedMMDiff
from .nouns import Noun, check_negative, find_nouns, read


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """Both conditionings of a personalised prompt, and which word was bound to which subject."""

    positive: list
    negative: list
    bindings: tuple[tuple[str, PromptSubject], ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line per binding and per note, for the node."""
        if not self.bindings and not self.notes:
            return "no subject in this prompt"
        bound = [_describe(word, subject) for word, subject in self.bindings]
        return "\n".join([*bound, *(f"note: {note}" for note in self.notes)])


def _describe(word: str, bound: PromptSubject) -> str:
    references = bound.subject.references
    plural = "s" * (references != 1)
    return (
        f"{word} → {bound.name} ({references} reference{plural}, {len(bound.subject.tokens)} "
        f"tokens, weight {bound.weight:g})"
    )


def encode_prompt(
    clip,
    mmdiff: LoadedMMDiff,
    text: str,
    negative: str,
    subjects: Subjects = (),
    start: float = 0.0,
    behaviour: str | None = None,
    lora_strength: float = 1.0,
) -> EncodedPrompt:
    """Texts and subjects -> CONDITIONING for both sides of classifier-free guidance.

    text        with `<|name|>` right after a subject's class noun, or `<|subj|>` for the next
                subject in order; a subject may be mentioned several times, and, where names are
                used, not at all: then it is left out, and a note says so
    negative    plain text; the released behaviour fuses it at the same token positions, as the
                official code does; the corrected one does not
    start       0..1, fraction of the denoising drawn from the plain prompt (delayed conditioning)
    behaviour   None = what the checkpoint says

    ValueError for markers that cannot be bound, subjects of another adapter, CLIP of another base.
    """
    behaviour = behaviour or mmdiff.config.behaviour
    _check_adapter(mmdiff, subjects)
    check_negative(negative)
    adapted = text_side.adapted_clip(clip, mmdiff, behaviour, lora_strength)
    clean, nouns = find_nouns(adapted.tokenize, text)
    bound = text_side.bind(nouns, subjects)
    missed = [s for s in subjects if s not in bound]
    subjects = tuple(s for s in subjects if s in bound)
    encoder = PromptEncoder(adapted, mmdiff, nouns, bound)
    columns = _noun_columns(nouns, bound, subjects, *encoder.first_chunk(clean))
    prompt = BoundPrompt(subjects, mmdiff.adapter.fingerprint, columns) if subjects else None
    late = start if subjects else 0.0
    return EncodedPrompt(
        delayed(encoder.plain(clean) if late else [], encoder.fused(clean), prompt, late),
        against(encoder.negative(negative, behaviour, late)),
        tuple(zip((n.word for n in nouns), bound, strict=True)),
        _prompt_notes(missed, subjects, mmdiff.config),
    )


@dataclass(frozen=True, eq=False)
class PromptEncoder:
    """Texts -> CONDITIONING, with or without the subjects of the nouns (`bound`: one for each)."""

    clip: object
    mmdiff: LoadedMMDiff
    nouns: Sequence[Noun]
    bound: Sequence[PromptSubject]

    def plain(self, text: str) -> list:
        return text_side.encode(self.clip, read(self.clip.tokenize, text))

    def fused(self, text: str) -> list:
        if not self.bound:
            return self.plain(text)
        tokens = read(self.clip.tokenize, text)
        tokens = text_side.fuse_tokens(self.clip, self.mmdiff, tokens, self.nouns, self.bound)
        return text_side.encode(self.clip, tokens)

    def negative(self, text: str, behaviour: str, late: float) -> list:
        """The negative prompt; the released behaviour fuses it from `late` (0..1) on."""
        if behaviour != "released" or not self.bound:
            return carry(self.plain(text), None)
        return delayed(self.plain(text) if late else [], self.fused(text), None, late)

    def first_chunk(self, text: str) -> tuple[str, int]:
        """The first encoder's name, and the tokens of a chunk of it: 77 for SD's tokenizers, fewer
        in the small world."""
        first = self.mmdiff.config.encoders[0]
        return first, len(read(self.clip.tokenize, text)[first][0])


def _noun_columns(
    nouns: Sequence[Noun],
    bound: Sequence[PromptSubject],
    subjects: Subjects,
    encoder: str,
    length: int,
) -> tuple[tuple[int, ...], ...]:
    """Columns of the prompt embedding at which each subject's nouns are.

    length  tokens of a chunk of the prompt
    """
    columns: dict[int, list[int]] = {id(subject): [] for subject in subjects}
    for noun, subject in zip(nouns, bound, strict=True):
        chunk, position = noun.places[encoder]
        columns[id(subject)].append(chunk * length + position)
    return tuple(map(tuple, columns.values()))


def _prompt_notes(
    missed: Sequence[PromptSubject], subjects: Subjects, config: MMDiffConfig
) -> tuple[str, ...]:
    notes = [
        f"{s.name} is not in the prompt and will not appear; write <|{s.name}|> after its noun"
        for s in missed
    ]
    return (*notes, *look_alike_notes([s.subject for s in subjects], config))


def _check_adapter(mmdiff: LoadedMMDiff, subjects: Sequence[PromptSubject]) -> None:
    for subject in subjects:
        if subject.subject.adapter != mmdiff.adapter.fingerprint:
            raise ValueError(
                f"subject {subject.name!r} was encoded with another MM-Diff checkpoint than "
                f"{mmdiff.adapter.source}; connect the same Load MM-Diff node to both"
            )
