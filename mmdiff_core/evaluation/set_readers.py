"""Reads each protocol's set from a copy of its repository or page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..untrusted import STRICT, fill, load_json, parse, quoted
from .sets import (
    LONGEST_PROMPT,
    MOST_CASES,
    MOST_REFERENCES,
    SetBuilder,
    Subject,
    TestSet,
    bounded_text,
    images_in,
    mark,
    one_of,
)

DREAMBOOTH = "https://github.com/google/dreambooth"
UNO = "https://github.com/bytedance/UNO"
PLUS = "https://huggingface.co/datasets/yuangpeng/dreambench_plus"
XVERSE = "https://github.com/bytedance/XVerse"
LIVE = ("cat", "dog")  # classes of DreamBench with the prompts of live subjects

PROMPT_LINE = re.compile(r"""^(['"])(.*)\1\.format\(""")


def read_dreambench(root: Path) -> TestSet:
    """DreamBench: `dataset/prompts_and_classes.txt` and `dataset/<subject>/*.jpg`."""
    what = "DreamBench"
    table = one_of(
        root, ("dataset/prompts_and_classes.txt", "prompts_and_classes.txt"), what, DREAMBOOTH
    )
    lines = bounded_text(table, what).splitlines()
    classes, (things, live) = _classes(lines, table), _prompts(lines, table)
    made = SetBuilder(table.parent, what)
    for name, noun in classes.items():
        made.add_subject(name, noun, images_in(table.parent / name))
        for prompt in live if noun in LIVE else things:
            made.add_case((name,), one_noun(prompt, noun))
    return made.finish()


def _classes(lines: list[str], table: Path) -> dict[str, str]:
    rows = [line.strip().split(",") for line in lines if line.count(",") == 1 and "(" not in line]
    found = {name: noun for name, noun in rows if name != "subject_name" and noun}
    if not found:
        raise ValueError(f"{table} has no lines of the form subject_name,class")
    return found


def _prompts(lines: list[str], table: Path) -> tuple[list[str], list[str]]:
    """The prompts of things and of live subjects."""
    lists: list[list[str]] = []
    for line in lines:
        if line.startswith("prompt_list"):
            lists.append([])
        elif lists and (found := PROMPT_LINE.match(line.strip())):
            lists[-1].append(found[2])
    if len(lists) != 2 or not all(lists):
        raise ValueError(f"{table} has {len(lists)} lists of prompts; expected two, not empty")
    return lists[0], lists[1]


def one_noun(prompt: str, noun: str) -> str:
    """A prompt of `a {0} {1} ...` with the noun alone, and its marker behind it."""
    bare = prompt.replace("{0} ", "").replace("{0}", "")
    return bare.replace("{1}", f"{noun}<|s1|>", 1).replace("{1}", noun)


# ---------------------------------------------------------------- lists of prompts with images


@dataclass(config=STRICT)
class ImagePrompt:
    """A row of UNO's files."""

    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    image_paths: list[str] = Field(min_length=1, max_length=8)


def read_pairs(root: Path) -> TestSet:
    """DreamBench pairs: UNO's `dreambench_multiip.json` and the images that it names.

    DreamBench's own table of classes says the nouns.
    """
    what = "DreamBench pairs"
    names = ("dreambench_multiip.json", "datasets/dreambench_multiip.json")
    table = one_of(root, names, what, UNO)
    rows = _list_of(ImagePrompt, table, what)
    made = SetBuilder(table.parent, what)
    classes = one_of(
        table.parent,
        ("dreambooth/dataset/prompts_and_classes.txt",),
        "DreamBench's table of classes",
        DREAMBOOTH,
    )
    nouns = _classes(bounded_text(classes, what).splitlines(), classes)
    for row in rows:
        given = [made.inside(path) for path in row.image_paths]
        subjects = [path.parent.name for path in given]
        for name, path in zip(subjects, given, strict=True):
            if name not in nouns:
                raise ValueError(f"{table} names the subject {quoted(name)}, not in {classes}")
            made.add_subject(name, nouns[name], images_in(path.parent))
        made.add_case(subjects, row.prompt, given)
    return made.finish()


def _list_of(kind: type, table: Path, what: str) -> list[Any]:
    rows = load_json(bounded_text(table, what), str(table))
    if not isinstance(rows, list) or len(rows) > MOST_CASES:
        raise ValueError(f"{table} is no list of at most {MOST_CASES} prompts")
    return [fill(kind, row, f"row {number} of {table}") for number, row in enumerate(rows)]


@dataclass(config={"strict": True})
class XVerseSource:
    """A reference of XVerseBench."""

    image_path: str
    caption: str


@dataclass(config={"strict": True})
class XVerseInput:
    """The references of a prompt, and its words for them: [reference, word, ...]."""

    src_inputs: list[XVerseSource] = Field(min_length=1, max_length=8)
    use_words: list[list[int | str]] = Field(max_length=8)


@dataclass(config={"strict": True})
class XVerseRow:
    """A row of XVerseBench."""

    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    modulation: list[XVerseInput] = Field(min_length=1, max_length=1)


def read_xverse(root: Path, name: str) -> TestSet:
    """XVerseBench: `eval/tools/XVerseBench_<name>.json` and `assets/XVerseBench/...`."""
    what, file = f"XVerseBench {name}", f"XVerseBench_{name}.json"
    table = one_of(root, (f"eval/tools/{file}", file), what, XVERSE)
    made = SetBuilder(root, what)
    for row in _list_of(XVerseRow, table, what):
        inputs = row.modulation[0]
        words = {int(use[0]): str(use[1]) for use in inputs.use_words if len(use) > 1}
        subjects, given = [], []
        for number, source in enumerate(inputs.src_inputs):
            path = made.inside(source.image_path)
            noun = words.get(number, source.caption.removeprefix("a ").removeprefix("an "))
            person, name = path.parent.name == "human", f"{path.parent.name}_{path.stem}"
            subjects.append(made.add_subject(name, noun, [path], person))
            given.append(path)
        made.add_case(subjects, _marked(row.prompt, subjects, words, made), given)
    return made.finish()


def _marked(prompt: str, subjects: list[str], words: dict[int, str], made: SetBuilder) -> str:
    """With markers: a subject may be called by another word in each prompt."""
    nouns = [words.get(i, made.subjects[name].noun) for i, name in enumerate(subjects)]
    return mark(prompt, nouns, made.what)


def read_dreambench_plus(root: Path) -> TestSet:
    """DreamBench++: `images/**/NN.jpg`, and `captions/**/NN.txt` with the subject's noun in the
    first line and a prompt in each further one."""
    what = "DreamBench++"
    captions = one_of(root, ("captions", "data/captions"), what, PLUS)
    made = SetBuilder(captions.parent, what)
    for path in sorted(captions.rglob("*.txt"))[:MOST_CASES]:
        place = path.relative_to(captions).with_suffix("")
        image = made.inside(f"images/{place.as_posix()}.jpg")
        noun, *prompts = filter(None, map(str.strip, bounded_text(path, what).splitlines()))
        name = made.add_subject("_".join(place.parts), noun, [image])
        for prompt in prompts:
            # a style has no noun in most of its prompts: those are scored, not drawn
            made.add_case((name,), _where_there(prompt, noun))
    return made.finish()


def _where_there(prompt: str, noun: str) -> str:
    found = re.search(rf"\b{re.escape(noun)}\b", prompt, re.IGNORECASE)
    return f"{prompt[: found.end()]}<|s1|>{prompt[found.end() :]}" if found else f"{prompt}<|s1|>"


# ---------------------------------------------------------------- a folder of yours


@dataclass(config=STRICT)
class OwnSubject:
    """A subject of `subjects.json`; without references all images of its folder are."""

    noun: str = Field(min_length=1, max_length=80)
    references: list[str] = Field(default=[], max_length=MOST_REFERENCES)


@dataclass(config=STRICT)
class OwnPrompt:
    """A prompt of `subjects.json`."""

    subjects: list[str] = Field(min_length=1, max_length=8)
    text: str = Field(min_length=1, max_length=LONGEST_PROMPT)


@dataclass(config=STRICT)
class OwnSet:
    """`subjects.json` of a folder of yours."""

    subjects: dict[str, OwnSubject] = Field(min_length=1, max_length=1000)
    prompts: list[OwnPrompt] = Field(default=[], max_length=MOST_CASES)


def read_own(root: Path) -> TestSet:
    """A folder of yours: `subjects.json`, and `<subject>/*.jpg` where it names no references."""
    made, said = _own_subjects(root)
    if not said.prompts:
        raise ValueError(f"{made.what}: prompts is empty, expected at least 1 prompt")
    for row in said.prompts:
        for name in row.subjects:
            if name not in made.subjects:
                raise ValueError(f"{made.what}: a prompt names {quoted(name)}, which is no subject")
        made.add_case(row.subjects, row.text)
    return made.finish()


def read_subjects(root: Path) -> dict[str, Subject]:
    """The subjects of a folder of yours; its prompts may be left out."""
    return _own_subjects(root)[0].subjects


def _own_subjects(root: Path) -> tuple[SetBuilder, OwnSet]:
    table = one_of(root, ("subjects.json",), "your set", "the page that describes it")
    said = parse(OwnSet, bounded_text(table, "your set"), str(table))
    made = SetBuilder(root, str(table))
    for name, subject in said.subjects.items():
        named = [made.inside(path) for path in subject.references]
        made.add_subject(name, subject.noun, named or images_in(root / name))
    return made, said
