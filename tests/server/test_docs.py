"""What the documentation promises can be looked up: the tests it names exist, help pages name what the nodes have and quote what they say."""
from __future__ import annotations

import ast
import io
import json
import re
import urllib.error
import urllib.request
from functools import cache

import pytest
from PIL import Image

from support.paths import PACK, PACK_NAME, TESTS
from support.server import Server

PAGES = PACK / "web/docs"

TROUBLE = ("## When something is wrong", "## 出错时")
TABLES = PACK / "mmdiff_core/host/README.md"
NAMED = re.findall(r"`(\w+\.py)::(test_\w+)`", TABLES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file, name", NAMED)
def test_every_situation_in_the_tables_has_its_test(file, name):
    (path,) = TESTS.rglob(file)
    defined = {x.name for x in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(x, ast.FunctionDef)}
    assert name in defined, f"{file} has no {name}"


def test_no_line_of_the_tables_is_without_a_test():
    rows = [line for line in TABLES.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and not line.startswith(("| situation", "| ---"))]
    assert len(rows) == len(NAMED) > 30


# ---------------------------------------------------------------- help pages

@pytest.fixture(scope="module")
def nodes(server: Server) -> dict[str, dict]:
    """/object_info of the nodes that the pack's source declares: the host may have another copy of the pack beside it."""
    declared = {name for path in (PACK / "nodes").glob("*.py") for name in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))}
    info = server.get("/object_info")
    assert declared <= set(info), f"not served: {sorted(declared - set(info))}"
    return {name: info[name] for name in sorted(declared)}


def names_of(node: dict) -> list[str]:
    """Every input and output, as the page has to write them."""
    return [name for group in ("required", "optional") for name in node["input"].get(group, ())] + list(node["output_name"])


def named_in(page: str) -> set[str]:
    """What a page names in bold or as code; of `mask_1 to mask_6` all six."""
    found = {part.strip(" `*").lower() for span in re.findall(r"\*\*(.+?)\*\*|`([^`]+)`", page) for part in re.split(r", | to ", "".join(span))}
    for stem, first, last in re.findall(r"(\w+)_(\d+)\W+(?:to|and|–|…|\.\.\.)?\W*\1_(\d+)", page):
        found |= {f"{stem}_{i}".lower() for i in range(int(first), int(last) + 1)}
    return found


def lacking(node: dict, page: str) -> list[str]:
    return [name for name in names_of(node) if name.lower() not in named_in(page)]


def test_every_node_has_a_help_page_that_names_all_its_inputs_and_outputs_and_no_page_is_without_a_node(nodes):
    assert {p.stem for p in PAGES.glob("*.md")} == set(nodes)
    found = {name: lacking(node, (PAGES / f"{name}.md").read_text(encoding="utf-8")) for name, node in nodes.items()}
    assert {name: left for name, left in found.items() if left} == {}


def test_every_help_page_shows_its_node_as_it_looks(nodes, server: Server):
    pages = [*PAGES.glob("*.md"), *PAGES.glob("*/zh.md")]
    assert {p.stem for p in (PAGES / "pictures").iterdir()} == set(nodes)
    for page in pages:
        node = page.parent.name if page.stem == "zh" else page.stem
        (picture,) = re.findall(r"!\[[^\]]+\]\((.+?)\)", page.read_text(encoding="utf-8"))
        assert picture == f"pictures/{node}.jpg"
        with urllib.request.urlopen(f"{server.url}/extensions/{PACK_NAME}/docs/{picture}", timeout=30) as answer:
            found = answer.read()
        with Image.open(io.BytesIO(found)) as opened:
            assert opened.format == "JPEG" and min(opened.size) > 100 and len(found) <= 60_000


@cache
def sentences() -> tuple[str, ...]:
    """Every text in the pack's code; what is filled in while running is a NUL."""
    def words(item: ast.AST) -> str:
        if isinstance(item, ast.Constant) and isinstance(item.value, str):
            return re.sub(r"\{\w+\}", "\0", item.value)
        if isinstance(item, ast.JoinedStr):
            return "".join(map(words, item.values))
        return words(item.left) + words(item.right) if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Add) else "\0"
    files = [*(PACK / "mmdiff_core").rglob("*.py"), *(PACK / "nodes").glob("*.py")]
    return tuple(words(item) for path in files for item in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(item, (ast.Constant, ast.JoinedStr, ast.BinOp)))


def quoted(page: str) -> list[str]:
    """The messages that a page explains: sentences as code in its last part, … for what differs."""
    trouble = "".join(page.partition(heading)[2] for heading in TROUBLE)
    return [text for text in re.findall(r"`([^`]+)`", re.sub(r"\s*\n\s*", " ", trouble)) if len(text.split()) > 3]


def is_said(message: str) -> bool:
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.S)
    return any(pattern.search(sentence) for sentence in sentences())


@pytest.mark.parametrize("path", sorted(PAGES.rglob("*.md")), ids=lambda p: str(p.relative_to(PAGES).with_suffix("")))
def test_every_message_that_a_help_page_explains_is_one_that_the_pack_says(path):
    assert [message for message in quoted(path.read_text(encoding="utf-8")) if not is_said(message)] == []


def test_an_invented_message_would_be_noticed():
    assert is_said("MM-Diff checkpoint … not found. Searched: …; found there: …")
    assert not is_said("MM-Diff checkpoint … was not found. Searched: …")


def test_the_server_gives_every_page_in_every_language_it_was_written_in(server: Server):
    for path in PAGES.rglob("*.md"):
        address = f"{server.url}/extensions/{PACK_NAME}/docs/{path.relative_to(PAGES).as_posix()}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.read() == path.read_bytes()


# ---------------------------------------------------------------- translations

ZH = PACK / "locales/zh/nodeDefs.json"
# Looked at in a browser: frontend 1.58.1 shows them; 1.32.9 loses every pack's texts when it loads a language besides English, its own fault.
# What vue-i18n, which shows these texts, reads as its own syntax: plural forms, links, places to fill in
SYNTAX = set("|@{}$")


def keys_of(table: dict, above: str = "") -> set[str]:
    """Every path to a text: "MMDiffLoad.inputs.checkpoint.tooltip"."""
    return {key for name, value in table.items()
            for key in (keys_of(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}"})}


def keys_wanted(nodes: dict[str, dict]) -> set[str]:
    """The same for what the schemas have: names and descriptions, and a tooltip where the English one is."""
    wanted = set()
    for name, node in nodes.items():
        wanted |= {f"{name}.display_name", f"{name}.description"}
        for group in ("required", "optional"):
            for key, (_, *options) in node["input"].get(group, {}).items():
                wanted |= {f"{name}.inputs.{key}.{part}" for part in ("name", *(["tooltip"] if options and options[0].get("tooltip") else []))}
        for i, tooltip in enumerate(node["output_tooltips"] or [None] * len(node["output"])):
            wanted |= {f"{name}.outputs.{i}.{part}" for part in ("name", *(["tooltip"] if tooltip else []))}
    return wanted


def translated() -> dict:
    return json.loads(ZH.read_text(encoding="utf-8"))


def test_the_chinese_texts_are_those_of_the_schemas_none_missing_and_none_unknown(nodes):
    have, wanted = keys_of(translated()), keys_wanted(nodes)
    missing, unknown = sorted(wanted - have), sorted(have - wanted)
    assert not missing and not unknown, "\n".join([f"{ZH.name}:", *(f"missing {k}" for k in missing), *(f"unknown {k}" for k in unknown)])


def test_a_text_that_is_missing_or_unknown_would_be_noticed(nodes):
    changed = {"MMDiffNew": {"display_name": "x"}, **{k: v for k, v in translated().items() if k != "MMDiffLoad"}}
    have, wanted = keys_of(changed), keys_wanted(nodes)
    assert "MMDiffLoad.inputs.checkpoint.tooltip" in wanted - have and have - wanted == {"MMDiffNew.display_name"}


def test_no_translation_has_a_character_that_the_web_page_reads_as_syntax():
    def texts(table: dict):
        for value in table.values():
            yield from texts(value) if isinstance(value, dict) else (value,)
    every = list(texts(translated()))
    assert [text for text in every if SYNTAX & set(text)] == [] and all(text.strip() for text in every)


def test_the_server_gives_the_translations_out(server: Server):
    given = server.get("/i18n")
    assert {name: given["zh"]["nodeDefs"].get(name) for name in translated()} == translated()
    assert not [name for name in given.get("en", {}).get("nodeDefs", {}) if name in translated()], "English would be written twice"


def test_every_node_has_a_chinese_page_that_names_what_the_english_one_does(nodes):
    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*/zh.md")}
    assert set(pages) == set(nodes)
    assert {name: left for name, page in pages.items() if (left := lacking(nodes[name], page))} == {}
    for name, page in pages.items():
        english = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert set(quoted(page)) == set(quoted(english)), f"{name}: other messages than the English page"
        assert translated()[name]["display_name"] == page.splitlines()[0].removeprefix("# ")


# ---------------------------------------------------------------- the page's own texts

TEXT = r'"((?:[^"\\]|\\.)*)"'
DEFINED = r"(?:function )?say\([^)]*\)\s*\{"


def shown_by(code: str) -> list[str | None]:
    """The text of every call of say(); None of a call whose text cannot be read here."""
    calls = re.finditer(rf"(?<![\w.])(?!{DEFINED})say\(\s*(?:{TEXT}\s*[,)])?", re.sub(rf"function {DEFINED}", "", code))
    return [call[1] for call in calls]


def words() -> dict[str, str]:
    """English to Chinese, of web/words.js."""
    (table,) = re.findall(r"^  zh: \{$(.*?)^  \},$", (PACK / "web/words.js").read_text(encoding="utf-8"), re.S | re.M)
    return dict(re.findall(rf"^    {TEXT}:\s+{TEXT},$", table, re.M))


def test_every_text_of_the_page_has_its_chinese_and_no_chinese_is_left_over():
    shown = [text for path in (PACK / "web").glob("*.js") for text in shown_by(path.read_text(encoding="utf-8"))]
    assert None not in shown, "the text of say() has to be one literal, or nobody sees that its Chinese is missing"
    assert set(shown) == set(words()) and len(words()) > 10
    for english, chinese in words().items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)) and re.search(r"[\u4e00-\u9fff]", chinese), english


def test_a_text_that_cannot_be_looked_up_would_be_noticed():
    code = 'export function say(text, values = {}) {}  say("One {n}", { n });  say(text);  say(`Two`);  say("Two" + more);  this.say("Three");'
    assert shown_by(code) == ["One {n}", None, None, None]


def test_bold_words_of_the_chinese_pages_are_shown_bold():
    """Markdown keeps the stars where punctuation comes before the closing ones and a character right after, which only Chinese does."""
    for path in PAGES.glob("*/zh.md"):
        spans = path.read_text(encoding="utf-8").split("**")[1::2]
        assert spans and [span for span in spans if not re.fullmatch(r"\w|\w.*\w", span)] == [], path


def test_english_falls_back_to_the_page_beside_the_folder(server: Server):
    """The web page asks for <node>/<language>.md first; only when that is not found for <node>.md."""
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.url}/extensions/{PACK_NAME}/docs/MMDiffLoad/en.md", timeout=30)
