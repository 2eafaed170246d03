"""The documentation site builds, its links lead somewhere, and no text is in it twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from dev_parts.docs_site.texts import Texts, section
from dev_parts.host import Pack
from dev_parts.publishing import NODES, site_command

from support.paths import PACK
from support.publishing import run

HOME = "https://mm-diff.github.io/mm-diff-for-comfyui/"
REPOSITORY = "https://github.com/mm-diff/mm-diff-for-comfyui/"
WORDS = 12  # so many in a row are a repetition


class Page(HTMLParser):
    """The links, images, anchors and paragraphs of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {""}
        self.feed(text)
        self.paragraphs = re.findall(r"<p>(.*?)</p>", text, re.DOTALL)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.anchors |= {told[name] for name in ("id", "name") if told.get(name)}
        if tag == "a" and told.get("href"):
            self.links.append(told["href"])
        if tag in ("img", "script", "iframe") and told.get("src"):
            self.loaded.append(told["src"])
        if tag == "link" and told.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loaded.append(told["href"])


@pytest.fixture(scope="module")
def site(nodes, tmp_path_factory) -> Path:
    """The built site; a warning of mkdocs would have ended the build."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "nodes.json").write_text(json.dumps(nodes), encoding="utf-8")
    command = site_command("python", Pack(PACK), folder / "site")[1:]
    run(folder, command, PACK, **{NODES: str(folder / "nodes.json")})
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("index.html")}


def broken(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    """Whether a link within the site or into the repository leads nowhere."""
    address, _, anchor = unquote(link).partition("#")
    if address.startswith(REPOSITORY):
        place = re.match(r"(?:blob|tree|edit)/main/(.+)", address.removeprefix(REPOSITORY))
        return bool(place) and not (PACK / place[1]).exists()
    if re.match(r"[a-z]+:", address):
        return False
    target = (path.parent / address).resolve() if address else path
    target = target / "index.html" if target.is_dir() else target
    return not target.is_file() or (target in pages and anchor not in pages[target].anchors)


def test_every_link_of_every_page_leads_to_something(pages):
    assert len(pages) > 30
    dead = [
        (path.parent.name, link)
        for path, page in pages.items()
        for link in page.links
        if broken(path, link, pages)
    ]
    assert dead == []


def test_pages_load_nothing_from_elsewhere_and_every_image_is_there(pages):
    for path, page in pages.items():
        for source in page.loaded:
            assert not source.startswith(("http", "//")), f"{path} loads {source}"
            assert (path.parent / source.partition("?")[0]).resolve().is_file(), source


def test_no_list_or_table_is_shown_as_plain_text(pages):
    """Python-Markdown wants a blank line before a list, and four spaces inside of one."""
    told = [(p, text) for p, page in pages.items() for text in page.paragraphs]
    assert [(p, t) for p, t in told if re.search(r"(^|\n)\s*([-*] |\d+\. |\|.*\|)", t)] == []
    assert [(p, t) for p, t in told if re.search(r"\$[^$\n]+\$", t)] == [], "an equation"


def test_every_node_has_a_page_with_its_help_and_what_its_schema_says(nodes, site):
    for name, node in nodes.items():
        shown = (site / "nodes" / name / "index.html").read_text(encoding="utf-8")
        assert f">{node['display_name']}</a>" in shown or f">{node['display_name']}<" in shown
        reference = shown.partition('id="types-defaults-and-ranges"')[2]
        for group in ("required", "optional"):
            for each, (_, *more) in node["input"].get(group, {}).items():
                row = re.search(rf"<tr>\s*<td><code>{each}</code>.*?</tr>", reference, re.DOTALL)
                assert row, f"{name}.{each}"
                if more and "min" in more[0]:
                    assert f"{more[0]['min']:g} to {more[0]['max']:g}" in row[0]
        assert "When something is wrong" in shown or name == "MMDiffSmallWorldLoader"


def test_equations_are_mathml_that_browsers_draw_themselves(site):
    method = (site / "method/index.html").read_text(encoding="utf-8")
    assert method.count('display="block"') == len(
        re.findall(r"^```math", (PACK / "docs/method.md").read_text(encoding="utf-8"), re.MULTILINE)
    )


# ---------------------------------------------------------------- one source for each text


def sequences(text: str) -> Iterator[tuple[str, ...]]:
    """Every run of so many words, without code blocks, tables' rules and the addresses of links."""
    prose = re.sub(r"```.*?```|^ {4}[^\n]*$|\]\([^)]*\)|[|*_`#\[\]]", " ", text, flags=re.S | re.M)
    words = prose.lower().split()
    for start in range(len(words) - WORDS + 1):
        yield tuple(words[start : start + WORDS])


@cache
def elsewhere() -> dict[tuple[str, ...], str]:
    """What README, help pages and the other texts of the repository say."""
    texts = [*PACK.glob("*.md")]
    for folder in ("web/docs", "mmdiff_core"):
        texts += (PACK / folder).rglob("*.md")
    found = {}
    for path in texts:
        found |= dict.fromkeys(sequences(path.read_text(encoding="utf-8")), path.name)
    return found


@pytest.mark.parametrize(
    "path", sorted((PACK / "docs").rglob("*.md")), ids=lambda p: p.relative_to(PACK).as_posix()
)
def test_a_page_of_the_site_repeats_nothing_that_stands_elsewhere(path):
    said = sequences(path.read_text(encoding="utf-8"))
    assert {" ".join(s): elsewhere()[s] for s in said if s in elsewhere()} == {}


def test_a_repetition_would_be_noticed():
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    assert any(each in elsewhere() for each in sequences(section(readme, "limits")))


# ---------------------------------------------------------------- sections and links


@pytest.fixture
def texts(tmp_path) -> Texts:
    for name, text in {
        "README.md": "# Pack\n\nIntro.\n\n## Use\n\nUse `[it](x)`. [M](#more) [H](h.md#a)\n\n"
        "### First\n\nOne.\n\n## More\n\nLast.\n",
        "h.md": "# Help\n",
        "tool.py": "",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    made = Texts(tmp_path, "https://host/pack", {"h.md": "nodes/h.md", "docs/a.md": "a.md"})
    made.note_includes("docs/a.md", "a.md", '[Use](../README.md#use "include")')
    return made


def test_an_included_section_brings_its_parts_and_its_links_lead_to_pages_or_the_repository(texts):
    shown = texts.on_site("docs/a.md", "a.md", 'Before.\n\n[Use](../README.md#use "include")\n')
    assert "### First\n\nOne." in shown and "Last." not in shown and "Intro" not in shown
    assert "`[it](x)`" in shown, "code is left alone"
    assert "[M](https://host/pack/blob/main/README.md#more)" in shown
    assert "[H](nodes/h.md#a)" in shown


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("../README.md#first", "../a.md#first"),
        ("../README.md#use", "../a.md"),
        ("../tool.py", "https://host/pack/blob/main/tool.py"),
        ("../h.md", "h.md"),
        ("https://elsewhere/x", "https://elsewhere/x"),
    ],
)
def test_a_link_to_a_text_leads_to_the_page_that_shows_it(texts, link, leads):
    assert texts.with_links("docs/b.md", "nodes/b.md", f"[x]({link})") == f"[x]({leads})"


@pytest.mark.parametrize("text", ["[x](../gone.md)", '[x](../README.md#gone "include")'])
def test_a_link_or_include_of_nothing_is_a_warning_which_ends_the_build(texts, text, caplog):
    texts.on_site("docs/b.md", "b.md", text)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.name.startswith("mkdocs")
    assert "docs/b.md" in record.message and "gone" in record.message
