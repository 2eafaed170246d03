"""Report what the pack finds on this computer, what is missing, and where to get it.

    python -m mmdiff_core doctor [--extra-model-paths-config FILE ...] [--html FILE]

The node MM-Diff Doctor gives the same report. Nothing is downloaded or changed, and nothing that is
missing is an error: it is a line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..host import doctor, start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument(
        "--extra-model-paths-config", type=Path, nargs="+", default=[], help="as for the server"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the report to this file, as a page"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    lines, extra = [], args.extra_model_paths_config
    for path in extra:
        if not path.is_file():
            lines.append(doctor.Line(doctor.NOTE, "Start", f"{path} not found"))
    try:
        start.use_comfyui()
        start.use_model_folders(extra)
    except (ImportError, OSError) as error:
        lines.append(doctor.Line(doctor.MISSING, "Start", str(error)))
    lines += doctor.examine()
    sys.stdout.write(doctor.render(lines) + "\n")
    if args.html:
        args.html.write_text(doctor.as_page(lines), encoding="utf-8")
    return 0
