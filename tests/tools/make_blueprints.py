"""Write the subgraph blueprints in subgraphs/ from the nodes of the bundled graph of two people.

    python tests/tools/make_blueprints.py

Run it after a change of that graph or of a node's inputs; a test compares the files with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(Path(__file__).parent)]

from graphs.blueprint import blueprint, file_name  # noqa: E402

from support.paths import PACK  # noqa: E402

SOURCE = PACK / "workflows/10 Two people.json"
FOLDER = PACK / "subgraphs"
COUNTS = (1, 2, 3)


def texts() -> dict[Path, str]:
    """Each file with what belongs into it."""
    graph = json.loads(SOURCE.read_text(encoding="utf-8"))
    return {
        FOLDER / f"{file_name(n)}.json": json.dumps(blueprint(graph, n), indent=1) + "\n"
        for n in COUNTS
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
