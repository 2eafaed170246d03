"""Reads the sets whose prompts are Python code. It is parsed, never run."""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..untrusted import quoted
from .set_readers import one_noun
from .sets import SetBuilder, TestSet, bounded_text, images_in, one_of

FASTCOMPOSER = "https://github.com/mit-han-lab/fastcomposer"
MS_DIFFUSION = "https://github.com/MS-Diffusion/MS-Diffusion"
PLACE = re.compile(r"\{(\d)\}")


def read_fastcomposer(root: Path) -> TestSet:
    """FastComposer's portraits: its `evaluation/single_object/data.py` (15 people, 40 prompts), and
    `<person>/*.jpg` in the folder, or in `celeba_test_single` of it."""
    what = "FastComposer portraits"
    places = ("evaluation/single_object/data.py", "data.py")
    tree = _tree(one_of(root, places, what, FASTCOMPOSER), what)
    people = _texts(_assigned(tree, what), "IMAGE_TO_GENDER_EVAL", what)
    kinds = ("accessory", "style", "action", "context")
    templates = [text for kind in kinds for text in _templates(tree, f"get_{kind}_prompts", what)]
    made = SetBuilder(root, what)
    for person in sorted(people):
        folders = (person, f"celeba_test_single/{person}", f"data/celeba_test_single/{person}")
        photos = one_of(root, folders, f"{what}: person {person}", FASTCOMPOSER)
        made.add_subject(person, people[person], images_in(photos))
        for template in templates:
            made.add_case((person,), one_noun(template, people[person]))
    return made.finish()


def _tree(path: Path, what: str) -> ast.Module:
    try:
        return ast.parse(bounded_text(path, what, 1 << 18))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{what}: {path} is no Python file that can be read") from None


def _assigned(tree: ast.Module, what: str) -> dict[str, Any]:
    """Values of the module's plain assignments; names of others stand for their values."""
    values: dict[str, Any] = {}
    for item in tree.body:
        # other statements are no tables
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            values[item.targets[0].id] = _value(item.value, values, what)
    return values


def _value(item: ast.expr, values: dict[str, Any], what: str) -> Any:
    if isinstance(item, ast.Name) and item.id in values:
        return values[item.id]
    if isinstance(item, ast.Dict):
        pairs = zip(item.keys, item.values, strict=True)
        return {_value(k, values, what): _value(v, values, what) for k, v in pairs}
    try:
        return ast.literal_eval(item)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        raise ValueError(f"{what}: line {item.lineno} of its table is no plain value") from None


def _templates(tree: ast.Module, name: str, what: str) -> list[str]:
    """The prompts in a function: texts with {0} {1}, or f-strings of its two arguments."""
    for item in tree.body:
        if isinstance(item, ast.FunctionDef) and item.name == name:
            lists = [each for each in ast.walk(item) if isinstance(each, ast.List)]
            return [_template(each) for each in lists[0].elts]
    raise ValueError(f"{what}: its table has no function {name}")


def _template(item: ast.expr) -> str:
    """`{1}` is the noun, `{0}` the rare word: the class token comes as second argument."""
    if isinstance(item, ast.Call):
        item = item.func.value
    parts = item.values if isinstance(item, ast.JoinedStr) else [item]
    texts = [str(p.value) if isinstance(p, ast.Constant) else _named(p) for p in parts]
    return "".join(texts)


def _named(part: ast.FormattedValue) -> str:
    return "{0}" if getattr(part.value, "id", "") == "unique_token" else "{1}"


def read_msbench(root: Path) -> TestSet:
    """MS-Bench: `msdiffusion/dataset/prompts/msbench.py` and `msbench/<type>/<subject>.jpg`.

    1148 combinations of two or three subjects, 4488 prompts.
    """
    what = "MS-Bench"
    table = one_of(
        root, ("msdiffusion/dataset/prompts/msbench.py", "msbench.py"), what, MS_DIFFUSION
    )
    said = _assigned(_tree(table, what), what)
    folder = one_of(root, ("msbench",), what, MS_DIFFUSION)
    made = SetBuilder(root, what)
    classes = _texts(said, "data_class_dict", what)
    for kinds, prompts in _dict(said, "subject_combination_prompts", what).items():
        for chosen in _combinations(folder, str(kinds).split("_")):
            for path in chosen:
                made.add_subject(path.stem, _noun(classes, path, what), [path])
            nouns = [made.subjects[path.stem].noun for path in chosen]
            marked = [f"{noun}<|s{i}|>" for i, noun in enumerate(nouns, 1)]
            for prompt in prompts:
                made.add_case([path.stem for path in chosen], _filled(prompt, marked))
    return made.finish()


def _combinations(folder: Path, kinds: list[str]) -> list[tuple[Path, ...]]:
    """One subject of each type; of a type that is asked for twice, all sets of two."""
    counts = Counter(kinds)
    sets = [list(itertools.combinations(images_in(folder / k), n)) for k, n in counts.items()]
    return [tuple(itertools.chain(*parts)) for parts in itertools.product(*sets)]


def _filled(prompt: object, words: list[str]) -> str:
    """`{0}` ... replaced by these words; other braces stay."""
    return PLACE.sub(lambda m: words[int(m[1])] if int(m[1]) < len(words) else m[0], str(prompt))


def _dict(values: dict[str, Any], name: str, what: str) -> dict:
    found = values.get(name)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{what}: its table has no dictionary {name}")
    return found


def _texts(values: dict[str, Any], name: str, what: str) -> dict[str, str]:
    found = _dict(values, name, what)
    return {str(key): str(value) for key, value in found.items()}


def _noun(classes: dict[str, str], path: Path, what: str) -> str:
    if path.stem not in classes:
        raise ValueError(f"{what}: its table has no class for the image {quoted(path.name)}")
    return classes[path.stem]
