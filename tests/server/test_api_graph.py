"""The graph in API format, and the lines of the README that run it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from support.paths import PACK
from support.server import Server
from support.workflows import load, to_api

API = PACK / "api/small_world_two_subjects.json"


def example() -> str:
    """The Python of the README."""
    text = (PACK / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return code


def test_the_lines_of_the_readme_run_the_graph_and_name_its_image(server: Server):
    code = example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert "http://127.0.0.1:8188" in code
    run = subprocess.run(
        [sys.executable, "-c", code.replace("http://127.0.0.1:8188", server.url)],
        cwd=PACK,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    (image,) = ast.literal_eval(run.stdout)
    assert (server.output / image["subfolder"] / image["filename"]).stat().st_size > 1000


def test_the_api_graph_is_the_bundled_one(info):
    def counted(graph: dict) -> list[str]:
        return sorted(node["class_type"] for node in graph.values())

    bundled = to_api(load(PACK / "workflows/01 Two subjects, small world.json"), info)
    assert counted(load(API)) == counted(bundled)
    for node in load(API).values():
        assert node["class_type"] in info
