"""Whether an environment's packages are whole: an installer that was killed leaves half of one,
which the next installer takes for installed.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from .process import DevError

# A file that several packages brought (onnxruntime and onnxruntime-gpu) is whole as any of them.
CHECK = """
import csv, importlib.metadata, json, os, pathlib
claims, listed = {}, {}
for found in importlib.metadata.distributions():
    folder = getattr(found, "_path", None)
    if folder is None or folder.suffix != ".dist-info" or folder.name.startswith("~"):
        continue
    name, _, version = folder.stem.partition("-")
    rows = list(csv.reader((found.read_text("RECORD") or "").splitlines()))
    whole = bool(rows) and bool(found.read_text("METADATA"))
    files = [(str(found.locate_file(row[0])), row[2]) for row in rows if len(row) > 2 and row[2]]
    listed[name, version] = whole, files
    for file, size in files:
        claims.setdefault(file, set()).add(int(size))
def intact(file):
    try:
        return os.stat(file).st_size in claims[file]
    except OSError:
        return False
broken = [
    f"{name}=={version}" for (name, version), (whole, files) in listed.items()
    if not whole or not all(intact(file) for file, _ in files)
]
print("BROKEN" + json.dumps(sorted(broken)))
"""


def broken_packages(python: Path) -> list[str]:
    """Packages (name==version) of which files are missing or have another size than installed."""
    answer = subprocess.run([str(python), "-c", CHECK], capture_output=True, text=True)
    found = answer.stdout.rpartition("BROKEN")[2].partition("\n")[0]
    if answer.returncode or not found:
        raise DevError(f"{python} cannot list its packages: {answer.stderr.strip()[-400:]}")
    return list(json.loads(found))


def has_pip(python: Path) -> bool:
    """Whether this Python is there, runs and has pip: what a half made environment lacks."""
    try:
        return not subprocess.run([str(python), "-c", "import pip"], capture_output=True).returncode
    except OSError:
        return False
