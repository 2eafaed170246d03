"""What mkdocs calls while it builds the site (mkdocs.yml names this file)."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from mkdocs.exceptions import PluginError  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from dev_parts.docs_site.equations import FENCE, in_lines  # noqa: E402
from dev_parts.docs_site.node_pages import reference  # noqa: E402
from dev_parts.docs_site.texts import IMAGES, WHOLE, Texts, slug  # noqa: E402

HELP = "web/docs"  # help pages, one for each node
NODE_LIST = "nodes/index.md"  # the page before them
TEXTS = "mmdiff_texts"  # where the state of a build is kept


def on_config(config: Any) -> Any:
    """The nodes' pages in the navigation, equations and GitHub's anchors in Markdown."""
    nodes = schemas()
    for entry in config.nav:
        if "Nodes" in entry:
            pages = [{node["display_name"]: f"nodes/{name}.md"} for name, node in nodes.items()]
            entry["Nodes"] = [NODE_LIST, *pages]
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [FENCE]
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    config.extra[TEXTS] = Texts(ROOT, config.repo_url.rstrip("/"))
    return config


def schemas() -> dict[str, dict]:
    """The nodes' schemas. PluginError says how to get them."""
    path = os.environ.get("MMDIFF_NODES")
    if not path or not Path(path).is_file():
        raise PluginError(
            f"MMDIFF_NODES is {path!r}; expected the file with the nodes' schemas. Build the site "
            "with: python dev.py docs"
        )
    return json.loads(Path(path).read_text(encoding="utf-8"))


def on_files(files: Files, config: Any) -> Files:
    """The repository's texts and images as files of the site."""
    texts: Texts = config.extra[TEXTS]
    own = {}
    for file in files.documentation_pages():
        file.edit_uri = f"docs/{file.src_uri}"
        own[file.edit_uri] = file.src_uri
    texts.pages = {**own, **WHOLE}
    for path, page in WHOLE.items():
        add(files, config, page, path, texts.read(path))
    for name, node in schemas().items():
        path, page = f"{HELP}/{name}.md", f"nodes/{name}.md"
        texts.pages[path] = page
        add(files, config, page, path, texts.read(path) + reference(node))
    for folder in IMAGES:
        for image in sorted((ROOT / folder).glob("*.jpg")):
            path = f"{folder}/{image.name}"
            texts.pages[path] = f"images/{path}"
            files.append(File.generated(config, f"images/{path}", abs_src_path=str(image)))
    for path, page in own.items():
        texts.note_includes(path, page, texts.read(path))
    return files


def add(files: Files, config: Any, page: str, path: str, text: str) -> None:
    """A page that is made from a file of the repository."""
    file = File.generated(config, page, content=text)
    file.edit_uri = path
    files.append(file)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Sections included, links as they lead on the site."""
    texts: Texts = config.extra[TEXTS]
    source = page.file.src_uri
    origin = next(path for path, target in texts.pages.items() if target == source)
    shown = unescaped_pipes(texts.on_site(origin, source, markdown))
    return in_lines(shown) if page.meta.get("math") else shown


def unescaped_pipes(markdown: str) -> str:
    """GitHub wants `\\|` in the code of a table, Python-Markdown a plain one."""

    def plain(row: re.Match) -> str:
        return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0])

    return re.sub(r"^\|.*\|$", plain, markdown, flags=re.MULTILINE)
