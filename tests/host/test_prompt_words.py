"""What is reported of a prompt is what is done: the noun named is the token that is fused."""

from __future__ import annotations

import os
import random
import unicodedata

import pytest

from mmdiff_core.host.nouns import MARKERS, check_negative, find_nouns, last_word
from mmdiff_core.method.subjects import PromptSubject, add_subject, checked_name

from support.subjects import subject
from tiny_model import build

PROMPTS = 20_000 if os.environ.get("MMDIFF_LONG_FUZZ") else 400

# what prompts are made of: nouns with their markers, brackets, weights, escapes, signs, scripts
PARTS = (
    "a man<|a|>", "man <|a|>", "(man:1.3)<|a|>", "(man<|a|>:1.3)", "((man))<|subj|>", "[man]<|a|>",
    "man, <|a|>", "man.<|a|>", '"man"<|a|>', r"\(man\)<|a|>", r"(\(man\)<|a|>:0.9)", "{man}<|a|>",
    "man's<|a|>", "man<|a|>'s hat", "man’s<|a|>", "rock'n'roll<|a|>", "x-ray<|a|>", "a_man<|a|>",
    "agent 47<|a|>", "r2d2<|a|>", "women 3:<|a|>", "cyberpunk<|a|>", "MAN<|A|>", "мужчина<|a|>",
    "女人<|a|>和男人<|a|>", "महिला<|a|>", "e\u0301le\u0301ve<|a|>", "ﬁsh<|a|>", "İstanbul<|a|>",
    "straße<|a|>", "👩<|a|>", "man\u200b<|a|>", "man\n<|a|>", "man\t\r\n <|a|>", "man\xa0<|a|>",
    "embedding:nothing<|a|>", "man embedding:nothing <|a|>", "<|a|>", "<|a|><|a|>", "(<|a|>:1.2)",
    "man<|a|>,", "<|", "|>", "<||>", "<|a", "a|>", "man<|a|b|>", "in the snow", ", ", " ", "\n",
    "(", ")", ":1.2)", "\\", "BREAK", "tree " * 40, "::", "(:1.1)", "(man:)<|a|>", "(man:x)<|a|>",
)  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    return build.clip()


def spelled(clip, encoder: str, place: tuple[int, int], text: str) -> str:
    """The token at a place as its tokenizer's vocabulary spells it."""
    entry = clip.tokenize(text, return_word_ids=True)[encoder][place[0]][place[1]]
    tokenizer = getattr(clip.tokenizer, f"clip_{encoder}")
    return tokenizer.tokenizer.decode([int(entry[0])]).strip()


def plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()


def check(clip, text: str) -> int:
    """The nouns of a prompt that was taken: each is what its token spells, and a word."""
    clean, nouns = find_nouns(clip.tokenize, text)
    assert len(nouns) == len(MARKERS.findall(text)) and not MARKERS.search(clean)
    for noun in nouns:
        for encoder, place in noun.places.items():
            token = plain(spelled(clip, encoder, place, clean))
            assert "\ufffd" in token or plain(noun.word).endswith(token), (text, noun, token)
            assert "\ufffd" in token or any(
                unicodedata.category(c)[0] in "LMN" for c in token
            ), (text, noun, token)
    return len(nouns)


def test_made_up_prompts_name_the_token_that_is_fused_or_are_refused_in_a_sentence(clip):
    choose, bound, refused = random.Random(17), 0, 0
    for _ in range(PROMPTS):
        text = "".join(choose.choices(PARTS, k=choose.randint(1, 5)))
        try:
            bound += check(clip, text)
        except ValueError as error:
            refused += 1
            assert len(str(error)) < 400 and "<|" in str(error) or "marker" in str(error), text
    assert bound > PROMPTS / 10 and refused > PROMPTS / 10


@pytest.mark.parametrize("text, word", [
    ("a (man:1.3)<|a|> in the snow", "man"), ("((man))<|a|>", "man"), ("MAN<|a|>", "MAN"),
    ("a photo of (a young man:1.2) <|a|>, smiling", "man"), ("man\n<|a|>", "man"),
    ("(man<|a|>:1.3)", "man"), ("x-ray<|a|>", "ray"), ("r2d2<|a|>", "2"), ("a_man<|a|>", "man"),
    ("man<|a|>'s hat", "man"), ("женщина<|a|>", "женщина"), ("女人<|a|>和", "女人"),
])  # fmt: skip
def test_the_noun_is_read_as_the_tokenizer_reads_it(clip, text, word):
    _, (noun,) = find_nouns(clip.tokenize, text)
    assert noun.word == word and check(clip, text) == 1


@pytest.mark.parametrize("text, sign", [
    ("a man, <|a|>", "','"), ("man.<|a|>", "'.'"), ('"man"<|a|>', "'\"'"), ("[man]<|a|>", "']'"),
    (r"\(man\)<|a|>", "')'"), ("{man}<|a|>", "'}'"), ("man's<|a|>", '"\'s"'), ("man -<|a|>", "'-'"),
    ("👩<|a|>", "'👩'"), ("man...<|a|>", "'...'"), ("man<|a|>, and <|a|> her,<|a|>", "','"),
])  # fmt: skip
def test_a_sign_before_a_marker_is_refused_by_its_name(clip, text, sign):
    with pytest.raises(ValueError) as error:
        find_nouns(clip.tokenize, text)
    assert f"stands after {sign}, which is not a word" in str(error.value)


@pytest.mark.parametrize("text", ["a man<|a", "a man|>", "a man<|a|b|>", "<|a>", "man<|a|> <|"])
def test_an_incomplete_marker_is_refused(clip, text):
    with pytest.raises(ValueError, match="incomplete marker"):
        find_nouns(clip.tokenize, text)


def test_an_embedding_that_is_not_there_is_told(clip):
    with pytest.raises(ValueError, match="'embedding:nothing' before <\\|a\\|> is not one of"):
        find_nouns(clip.tokenize, "a man, embedding:nothing<|a|>")


def test_brackets_too_deep_for_the_tokenizer_are_told(clip):
    with pytest.raises(ValueError, match="has 5000 brackets inside one another, at most 200"):
        find_nouns(clip.tokenize, "(" * 5000 + "man<|a|>" + ")" * 5000)


@pytest.mark.parametrize("text, word", [
    ("", ""), (" \n", ""), ("man", "man"), ("a man ", "man"), ("3", "3"), ("man!?", "!?"),
    ("it's", "'s"), ("s", "s"), ("embedding:foo", "embedding:foo"), ("महिला", "महिला"),
])  # fmt: skip
def test_the_last_word_of_a_text(text, word):
    assert last_word(text) == word


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", [
    "a|b", "<x>", "a>b", "a<b", "{ann}", "ann\nlee", "ann\x1b[31m", "subj", "SUBJ", " Subj ", "",
    "  ", "x" * 101, "a\u2028b", "\ud800",
])  # fmt: skip
def test_a_name_that_no_marker_can_name_is_refused(name):
    with pytest.raises(ValueError) as error:
        add_subject((), PromptSubject(subject(name)))
    assert len(str(error.value)) < 300 and "\x1b" not in str(error.value)


@pytest.mark.parametrize("name", [
    "Ann", "ann lee", "Ännchen", "安娜", "एना", "o'hara", "ann-2", "a.b", "subject 1", "(ann)",
    "👩",
])  # fmt: skip
def test_every_other_name_is_bound_by_its_marker(clip, name):
    chain = add_subject((), PromptSubject(subject(name)))
    _, (noun,) = find_nouns(clip.tokenize, f"a man<|{name}|>, reading")
    assert noun.name == chain[0].name == checked_name(f" {name} ")


def test_made_up_names_are_refused_or_bound(clip):
    choose = random.Random(3)
    letters = "ab <>|{}\\/'\"(),.:;\n\t\x00äß安\u0301\u200d👩subj"
    for _ in range(300):
        name = "".join(choose.choices(letters, k=choose.randint(1, 6)))
        try:
            checked = checked_name(name)
        except ValueError:
            continue
        _, (noun,) = find_nouns(clip.tokenize, f"a man<|{checked}|>, reading")
        assert noun.name == checked


def test_a_marker_in_a_negative_prompt_is_told_without_its_length():
    with pytest.raises(ValueError, match="belongs in the positive prompt only") as error:
        check_negative(f"man<|{'x' * 50_000}|>")
    assert len(str(error.value)) < 200
