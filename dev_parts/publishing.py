"""The documentation site, and the tools that check what is published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .adopt import ensure_host
from .aside import Aside, fetched
from .host import Host, Pack
from .process import DevError, call, say
from .server import child_env

# in a folder of their own, since they bring forty packages that no ComfyUI needs
PUBLISHING = Aside(
    name="publishing",
    purpose="the tools for documentation and releases",
    packages=(
        "mkdocs-material>=9.6,<10",  # the site
        "latex2mathml>=3.78",  # its equations, which then need no script from elsewhere
        "comfy-cli>=1.5",  # the registry's own checks
    ),
    proof="mkdocs/__main__.py",
)

PUBLISHING_TOOLS = "MMDIFF_PUBLISHING_TOOLS"  # tells the tests where they are

NODES = "MMDIFF_NODES"  # tells the site's hooks where the nodes' schemas are, a JSON file

QUIET = {"NO_MKDOCS_2_WARNING": "1"}  # the theme's word on its successor


def site_command(python: Path | str, pack: Pack, site: Path) -> list[str]:
    """mkdocs, with every warning as an error."""
    config = pack.root / "mkdocs.yml"
    build = ["build", "--strict", "--quiet", "--config-file", str(config)]
    return [str(python), "-m", "mkdocs", *build, "--site-dir", str(site)]


def run_docs(pack: Pack, rest: Sequence[str]) -> int:
    """Build the site into output/site; with a folder named, there."""
    host = ensure_host(pack)
    tools = fetched(PUBLISHING, pack, host)
    nodes = pack.work / "nodes.json"
    write_schemas(pack, host, nodes)
    site = Path(rest[0]).absolute() if rest else pack.root / "output" / "site"
    env = {**child_env(pack, host), "PYTHONPATH": str(tools), NODES: str(nodes), **QUIET}
    status = call(site_command(host.python, pack, site), cwd=pack.root, env=env)
    if not status:
        say(f"The site is in {site}: open index.html there")
    return status


def write_schemas(pack: Pack, host: Host, nodes: Path) -> None:
    """The nodes' schemas as ComfyUI tells them, into a JSON file."""
    command = [host.python, "-m", "dev_parts.docs_site.schemas", nodes]
    if call(command, cwd=pack.root, env=child_env(pack, host)):
        raise DevError("the nodes' schemas could not be read, see above")
