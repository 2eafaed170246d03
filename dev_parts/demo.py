"""The demo: a picture through a real server, and its contact sheet."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .adopt import ensure_host
from .client import demo_client, photos_of
from .host import Host, Pack, probe
from .process import DevError, call, tail
from .server import child_env, running_server

# a demo: one *.api.json, NOTE.txt, and photos/ where it has its own
DEMO = Path("tests/small_world/demo")

PORTRAIT_DEMO = Path("tests/tiny/demo")
PICTURE = "mm-diff-demo.png"
PHOTOS = Path("web/photos")  # those of the bundled workflows, for demos without their own

# the command that draws the contact sheet beside the demo's picture
SHEET = ("mmdiff_core", "sheet")


def demo_parser() -> argparse.ArgumentParser:
    """The demo's own options, which its client shares."""
    parser = argparse.ArgumentParser(
        prog="dev.py demo", description="Draw one picture through a real ComfyUI server."
    )
    parser.add_argument(
        "--workflow", type=Path, help="another workflow in API format than the pack's own"
    )
    parser.add_argument(
        "--portrait",
        action="store_true",
        help="the portrait graph on a tiny SDXL with random weights: coloured noise",
    )
    parser.add_argument("--url", help=argparse.SUPPRESS)
    return parser


def run_demo(pack: Pack, rest: Sequence[str]) -> int:
    """The README's first command. With an address it is the client, run by the host's Python."""
    options = demo_parser().parse_args(rest)
    folder = pack.root / (PORTRAIT_DEMO if options.portrait else DEMO)
    own = next(folder.glob("*.api.json"), folder / "demo.api.json")
    workflow = Path(os.path.abspath(options.workflow or own))
    if not workflow.is_file():
        raise DevError(f"There is no workflow at {workflow}; name another with --workflow FILE.")
    if options.url:
        photos, save = photos_of(folder, pack.root / PHOTOS), pack.root / "output" / PICTURE
        asyncio.run(demo_client(options.url, workflow, photos, save))
        return 0
    host = ensure_host(pack)
    host = replace(host, device=probe(host)["device"]) if host.own else host
    code = run_in_server(pack, host, folder, workflow, options.portrait)
    if not code and not options.workflow and not options.portrait:
        code = draw_sheet(pack, host, folder, workflow)
    if code:
        log = pack.work / "server.log"
        print(f"The end of {log}:\n{tail(log)}", file=sys.stderr)
    return code


def run_in_server(pack: Pack, host: Host, folder: Path, workflow: Path, portrait: bool) -> int:
    """Start a server, and the client beside it; the client's exit status."""
    note = folder / "NOTE.txt"
    with running_server(pack, host) as url:
        print(
            f"\n{note.read_text(encoding='utf-8').strip()}\n" if note.is_file() else "", flush=True
        )
        client = [str(host.python), str(pack.root / "dev.py"), "demo", "--url", url]
        client += ["--workflow", str(workflow), *(["--portrait"] if portrait else [])]
        return call(client, env=child_env(pack, host))


def draw_sheet(pack: Pack, host: Host, folder: Path, workflow: Path) -> int:
    """The contact sheet: the demo's references and prompt, eight seeds, and where each subject was
    read.
    """
    nodes = json.loads(workflow.read_text(encoding="utf-8")).values()
    prompt = next(
        node["inputs"]["text"] for node in nodes if node["class_type"] == "MMDiffTextEncode"
    )
    photos = [
        str(folder / "photos" / node["inputs"]["image"])
        for node in nodes
        if node["class_type"] == "LoadImage"
    ]
    sheet = pack.root / "output" / "mm-diff-demo-sheet.png"
    command = [str(host.python), "-m", *SHEET, *photos, "--prompt", prompt, "--out", str(sheet)]
    env = {**child_env(pack, host), "COMFYUI_PATH": str(host.comfyui)}
    code = call(command, env=env, cwd=pack.root)
    if not code:
        print(f"Sheet:   {sheet}", flush=True)
    return code
