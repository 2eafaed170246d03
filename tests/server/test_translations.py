"""Chinese texts: those of the nodes, of the help pages, and of the page itself."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import pytest

from support.help_pages import PAGES, names_missing_in, quoted
from support.paths import PACK, PACK_NAME
from support.server import Server

# ---------------------------------------------------------------- translations

ZH = PACK / "locales/zh/nodeDefs.json"

# Looked at in a browser: frontend 1.58.1 shows them; 1.32.9 loses every pack's texts when it loads
# a language besides English, its own fault.
# What vue-i18n, which shows these texts, reads as its own syntax: plural forms, links, places to
# fill in
SYNTAX = set("|@{}$")


def keys_of(table: dict, above: str = "") -> set[str]:
    """Every path to a text: "MMDiffLoad.inputs.checkpoint.tooltip"."""
    return {
        key
        for name, value in table.items()
        for key in (
            keys_of(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}"}
        )
    }


def keys_wanted(nodes: dict[str, dict]) -> set[str]:
    """The same for what the schemas have.

    Names and descriptions, and a tooltip where the English one is.
    """
    wanted = set()
    for name, node in nodes.items():
        wanted |= {f"{name}.display_name", f"{name}.description"}
        for group in ("required", "optional"):
            for key, (_, *options) in node["input"].get(group, {}).items():
                wanted |= {
                    f"{name}.inputs.{key}.{part}"
                    for part in (
                        "name",
                        *(["tooltip"] if options and options[0].get("tooltip") else []),
                    )
                }
        for i, tooltip in enumerate(node["output_tooltips"] or [None] * len(node["output"])):
            wanted |= {
                f"{name}.outputs.{i}.{part}" for part in ("name", *(["tooltip"] if tooltip else []))
            }
    return wanted


def translated() -> dict:
    return json.loads(ZH.read_text(encoding="utf-8"))


# inputs that the schemas have on newer hosts only
NEWER = ("MMDiffSubjectEncoder.inputs.more.",)


def keys_had(table: dict, wanted: set[str]) -> set[str]:
    """Every path to a text, but for inputs that only newer hosts want."""
    return {key for key in keys_of(table) if key in wanted or not key.startswith(NEWER)}


def test_the_chinese_texts_are_those_of_the_schemas_none_missing_and_none_unknown(nodes):
    wanted = keys_wanted(nodes)
    have = keys_had(translated(), wanted)
    missing, unknown = sorted(wanted - have), sorted(have - wanted)
    assert not missing and not unknown, f"{ZH.name}: missing {missing}, unknown {unknown}"


def test_a_text_that_is_missing_or_unknown_would_be_noticed(nodes):
    changed = {
        "MMDiffNew": {"display_name": "x"},
        **{k: v for k, v in translated().items() if k != "MMDiffLoad"},
    }
    wanted = keys_wanted(nodes)
    have = keys_had(changed, wanted)
    assert "MMDiffLoad.inputs.checkpoint.tooltip" in wanted - have and have - wanted == {
        "MMDiffNew.display_name"
    }


def test_no_translation_has_a_character_that_the_web_page_reads_as_syntax():
    def texts(table: dict):
        for value in table.values():
            yield from texts(value) if isinstance(value, dict) else (value,)

    every = list(texts(translated()))
    assert [text for text in every if SYNTAX & set(text)] == []
    assert all(text.strip() for text in every)


def test_the_server_gives_the_translations_out(server: Server):
    given = server.get("/i18n")
    assert {name: given["zh"]["nodeDefs"].get(name) for name in translated()} == translated()
    assert not [name for name in given.get("en", {}).get("nodeDefs", {}) if name in translated()], (
        "English would be written twice"
    )


def test_every_node_has_a_chinese_page_that_names_what_the_english_one_does(nodes):
    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*/zh.md")}
    assert set(pages) == set(nodes)
    assert {
        name: left for name, page in pages.items() if (left := names_missing_in(nodes[name], page))
    } == {}
    for name, page in pages.items():
        english = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert set(quoted(page)) == set(quoted(english)), (
            f"{name}: other messages than the English page"
        )
        assert translated()[name]["display_name"] == page.splitlines()[0].removeprefix("# ")


# ---------------------------------------------------------------- the page's own texts

TEXT = r'"((?:[^"\\]|\\.)*)"'

DEFINED = r"(?:function )?say\([^)]*\)\s*\{"


def shown_by(code: str) -> list[str | None]:
    """The text of every call of say(); None of a call whose text cannot be read here."""
    calls = re.finditer(
        rf"(?<![\w.])(?!{DEFINED})say\(\s*(?:{TEXT}\s*[,)])?",
        re.sub(rf"function {DEFINED}", "", code),
    )
    return [call[1] for call in calls]


def words() -> dict[str, str]:
    """English to Chinese, of web/words.js."""
    (table,) = re.findall(
        r"^  zh: \{$(.*?)^  \},$", (PACK / "web/words.js").read_text(encoding="utf-8"), re.S | re.M
    )
    return dict(re.findall(rf"^    {TEXT}:\s+{TEXT},$", table, re.M))


def test_every_text_of_the_page_has_its_chinese_and_no_chinese_is_left_over():
    shown = [
        text
        for path in (PACK / "web").glob("*.js")
        for text in shown_by(path.read_text(encoding="utf-8"))
    ]
    assert None not in shown, (
        "the text of say() has to be one literal, or nobody sees that its Chinese is missing"
    )
    assert set(shown) == set(words()) and len(words()) > 10
    for english, chinese in words().items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(
            re.findall(r"\{\w+\}", chinese)
        ) and re.search(r"[\u4e00-\u9fff]", chinese), english


def test_a_text_that_cannot_be_looked_up_would_be_noticed():
    code = (
        'export function say(text, values = {}) {}  say("One {n}", { n });  say(text);  '
        'say(`Two`);  say("Two" + more);  this.say("Three");'
    )
    assert shown_by(code) == ["One {n}", None, None, None]


def test_bold_words_of_the_chinese_pages_are_shown_bold():
    """Markdown keeps the stars where punctuation comes before the closing ones and a character
    right after, which only Chinese does.
    """
    for path in PAGES.glob("*/zh.md"):
        spans = path.read_text(encoding="utf-8").split("**")[1::2]
        assert spans and [span for span in spans if not re.fullmatch(r"\w|\w.*\w", span)] == [], (
            path
        )


def test_english_falls_back_to_the_page_beside_the_folder(server: Server):
    """The page asks for <node>/<language>.md, and only when that is not found for <node>.md."""
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(
            f"{server.url}/extensions/{PACK_NAME}/docs/MMDiffLoad/en.md", timeout=30
        )
