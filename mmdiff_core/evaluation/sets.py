"""The sets that protocols are run on: subjects with their references, and prompts.

A set is read from a copy of its own repository or page; what it says is a stranger's, so sizes are
bounded, names are checked, and paths stay inside the folder. Python files are parsed, never run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..untrusted import listed, quoted

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
MOST_CASES, MOST_REFERENCES, LONGEST_PROMPT = 20_000, 64, 2000
MARKER = re.compile(r"<\|([^<|>]{0,80})\|>")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,79}")


@dataclass(frozen=True)
class Subject:
    """A person or thing: its name, its noun in prompts, and all its real images.

    person  whether its face is measured, where a protocol measures faces
    """

    name: str
    noun: str
    references: tuple[Path, ...]
    person: bool = True


@dataclass(frozen=True)
class Case:
    """A prompt with its subjects.

    number  of the prompt among those of the same subjects, from 0
    marked  the prompt with `<|s1|>`, `<|s2|>` ... behind the subjects' nouns
    given   the reference that a tool is given, one for each subject
    """

    subjects: tuple[str, ...]
    number: int
    marked: str
    given: tuple[Path, ...]

    @property
    def group(self) -> str:
        """The names of its subjects, joined: its folder of images."""
        return "+".join(self.subjects)

    @property
    def prompt(self) -> str:
        """The prompt without markers: what CLIP-T is told."""
        return MARKER.sub("", self.marked)


@dataclass(frozen=True)
class TestSet:
    """Subjects by name, and the cases in their order."""

    __test__ = False  # no test of pytest's

    subjects: Mapping[str, Subject]
    cases: tuple[Case, ...]


class SetBuilder:
    """Collects a set's subjects and cases, and checks them. ValueErrors begin with `what`."""

    def __init__(self, root: Path, what: str) -> None:
        self.root, self.what = root.resolve(), what
        self.subjects: dict[str, Subject] = {}
        self.cases: list[Case] = []
        self._numbers: dict[tuple[str, ...], int] = {}

    def inside(self, path: str) -> Path:
        """A file of the set. ValueError for one that leads elsewhere or is not there."""
        found = (self.root / path).resolve()
        if self.root not in found.parents:
            raise ValueError(f"{self.what} names {quoted(path)}, which lies outside {self.root}")
        if not found.is_file():
            raise ValueError(f"{self.what} names {quoted(path)}, which is not in {self.root}")
        return found

    def add_subject(
        self, name: str, noun: str, references: Sequence[Path], person: bool = True
    ) -> str:
        """A subject by its name; the name that its folder of images has."""
        if not NAME.fullmatch(name) or "+" in name:
            raise ValueError(
                f"{self.what} has a subject {quoted(name)}; expected letters, digits, _ - . and "
                "spaces, at most 80"
            )
        if not references:
            raise ValueError(f"{self.what}: the subject {quoted(name)} has no reference image")
        kept = tuple(references[:MOST_REFERENCES])
        self.subjects.setdefault(name, Subject(name, noun, kept, person))
        return name

    def add_case(
        self, names: Sequence[str], prompt: str, given: Sequence[Path] | None = None
    ) -> None:
        """A prompt that has its markers, or gets them behind the subjects' nouns."""
        if len(prompt) > LONGEST_PROMPT or not prompt.strip():
            raise ValueError(
                f"{self.what} has a prompt of {len(prompt)} characters; expected 1 to "
                f"{LONGEST_PROMPT}"
            )
        if len(self.cases) >= MOST_CASES:
            raise ValueError(f"{self.what} has more than {MOST_CASES} prompts")
        subjects = tuple(names)
        nouns = [self.subjects[name].noun for name in subjects]
        given = given or [self.subjects[name].references[0] for name in subjects]
        number = self._numbers.get(subjects, 0)
        self._numbers[subjects] = number + 1
        if MARKER.search(prompt):
            marked = self._numbered(prompt, subjects)
        else:
            marked = mark(prompt, nouns, self.what)
        self.cases.append(Case(subjects, number, marked, tuple(given)))

    def _numbered(self, prompt: str, subjects: tuple[str, ...]) -> str:
        """A prompt with `<|name|>` of each subject, or with `<|s1|>` ..., with the latter."""
        places = {name: f"s{number}" for number, name in enumerate(subjects, 1)}
        known = {**places, **{place: place for place in places.values()}}
        named = MARKER.findall(prompt)
        if unknown := [name for name in named if name not in known]:
            raise ValueError(
                f"{self.what}: the prompt {quoted(prompt)} names {quoted(unknown[0])}, which is "
                f"none of its subjects {listed(subjects)}"
            )
        if len({known[name] for name in named}) < len(subjects):
            raise ValueError(
                f"{self.what}: the prompt {quoted(prompt)} does not name all of its subjects "
                f"{listed(subjects)}; write <|name|> behind each noun, or no marker at all"
            )
        return MARKER.sub(lambda found: f"<|{known[found[1]]}|>", prompt)

    def finish(self) -> TestSet:
        """The set. ValueError for one without cases."""
        if not self.cases:
            raise ValueError(f"{self.what} has no prompts")
        return TestSet(self.subjects, tuple(self.cases))


def mark(prompt: str, nouns: Sequence[str], what: str = "the set") -> str:
    """The prompt with `<|s1|>` ... behind the nouns, each at its first free occurrence.

    ValueError where a noun is not in the prompt.
    """
    taken: list[tuple[int, int, int]] = []
    for number, noun in enumerate(nouns, 1):
        spans = [m.span() for m in re.finditer(rf"\b{re.escape(noun)}\b", prompt, re.IGNORECASE)]
        free = [span for span in spans if not _overlaps(span, taken)]
        if not free:
            raise ValueError(f"{what}: the prompt {quoted(prompt)} has no free word {quoted(noun)}")
        taken.append((*free[0], number))
    for _, end, number in sorted(taken, reverse=True):
        prompt = f"{prompt[:end]}<|s{number}|>{prompt[end:]}"
    return prompt


def _overlaps(span: tuple[int, int], taken: Sequence[tuple[int, int, int]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end, _ in taken)


def images_in(folder: Path) -> list[Path]:
    """The images directly in a folder, by name; none where it is not there."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and p.is_file())


def bounded_text(path: Path, what: str, most: int = 1 << 22) -> str:
    """A text file of at most `most` bytes. ValueError for a longer one or one that is not UTF-8."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{what} {path} is longer than {most} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{what} {path} is no UTF-8 text") from None


def one_of(root: Path, places: Sequence[str], what: str, page: str) -> Path:
    """The first of these places that exists below `root`. FileNotFoundError names the page."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise FileNotFoundError(
        f"{what} is not in {root}: expected {listed(places)} there. Nothing is downloaded: get it "
        f"from {page} and name its folder with --data."
    )
