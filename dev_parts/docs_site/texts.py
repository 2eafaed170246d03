"""Texts of the repository on the site: whole files, included sections, and their links."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("mkdocs.hooks.texts")

# files of the repository that are pages of the site -> where
WHOLE = {
    "mmdiff_core/host/README.md": "any-graph.md",
    "mmdiff_core/training/README.md": "training.md",
    "mmdiff_core/small_world/README.md": "small-world.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
IMAGES = ("web/pictures", "web/docs/pictures", "workflows")

INCLUDE = re.compile(r'^\[[^\]]+\]\((\S+) "include"\)$', re.MULTILINE)
HEADING = re.compile(r"^(#{1,6}) (.+)$")
CODE = r"```.*?^\s*```|`[^`\n]+`"
LINK = re.compile(
    rf'(?P<code>{CODE})|(?P<label>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<to>[^)\s]+)\)',
    re.DOTALL | re.MULTILINE,
)


def slug(heading: str, separator: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def plain(heading: str) -> str:
    """A heading as it is read: code and links without their signs."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)|`", lambda found: found[1] or "", heading)


def headings(text: str) -> Iterator[tuple[int, int, str]]:
    """(line, level, anchor) of each heading outside of fenced code."""
    fenced = False
    for number, line in enumerate(text.splitlines()):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and (found := HEADING.match(line)):
            yield number, len(found[1]), slug(plain(found[2]), "-")


def section(text: str, anchor: str) -> str | None:
    """What stands under a heading, without it; for no anchor what stands before the second one."""
    found, lines = list(headings(text)), text.splitlines()
    at = next((i for i, (*_, name) in enumerate(found) if name == anchor or not anchor), None)
    if at is None:
        return None
    first, level, _ = found[at]
    later = (line for line, depth, _ in found[at + 1 :] if depth <= level or not anchor)
    return "\n".join(lines[first + 1 : next(later, len(lines))]).strip()


@dataclass
class Texts:
    """What the site takes from the repository at `root`, whose pages are at `web`."""

    root: Path
    web: str
    pages: dict[str, str] = field(default_factory=dict)  # file of the repository -> page
    parts: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def read(self, path: str) -> str:
        """A file of the repository."""
        return (self.root / path).read_text(encoding="utf-8")

    def note_includes(self, origin: str, page: str, text: str) -> None:
        """Remember which page shows which section, so that links to it lead there."""
        for to in INCLUDE.findall(text):
            path, anchor = self.resolve(origin, to)
            self.parts[path, anchor] = (page, "")
            for _, _, inner in headings(section(self.read(path), anchor) or ""):
                self.parts[path, inner] = (page, inner)

    def resolve(self, origin: str, to: str) -> tuple[str, str]:
        """A link as (file of the repository, anchor)."""
        path, _, anchor = to.partition("#")
        folder = posixpath.dirname(origin)
        return (posixpath.normpath(posixpath.join(folder, path)) if path else origin), anchor

    def on_site(self, origin: str, page: str, text: str) -> str:
        """The text of a file as it stands on a page: sections included, links changed."""
        made, at = [], 0
        for found in INCLUDE.finditer(text):
            made.append(self.with_links(origin, page, text[at : found.start()]))
            made.append(self.included(origin, page, found[1]))
            at = found.end()
        return "".join([*made, self.with_links(origin, page, text[at:])])

    def included(self, origin: str, page: str, to: str) -> str:
        """A section of another file as it stands on a page."""
        path, anchor = self.resolve(origin, to)
        body = section(self.read(path), anchor)
        if body is None:
            log.warning("%s includes %s, which has no such section", origin, to)
        return self.with_links(path, page, body or "")

    def with_links(self, origin: str, page: str, text: str) -> str:
        """The text of a file with its links as they lead from a page."""

        def changed(found: re.Match) -> str:
            if found["code"] or re.match(r"[a-z]+:|/", found["to"]):
                return found[0]
            return f"{found['label']}({self.link(origin, page, found['to'])})"

        return LINK.sub(changed, text)

    def link(self, origin: str, page: str, to: str) -> str:
        """Where a link of a file leads from a page: to another page, or to the repository."""
        path, anchor = self.resolve(origin, to)
        tail = f"#{anchor}" if anchor else ""
        if (path, anchor) in self.parts:
            target, inner = self.parts[path, anchor]
            return self.relative(page, target) + (f"#{inner}" if inner else "")
        if self.pages.get(path) == page and tail:
            return tail
        if path in self.pages:
            return self.relative(page, self.pages[path]) + tail
        if not (self.root / path).exists():
            log.warning("%s links to %s, which does not exist", origin, to)
        kind = "tree" if (self.root / path).is_dir() else "blob"
        return f"{self.web}/{kind}/main/{path}{tail}"

    def relative(self, page: str, target: str) -> str:
        """A page's address from another one."""
        return posixpath.relpath(target, posixpath.dirname(page) or ".")
