"""What the pack finds on this computer, what is missing, and where it comes from. It reports and
changes nothing.

Shown by the node MM-Diff Doctor and by `python -m mmdiff_core doctor`. Nothing is downloaded, and
nothing that is missing is an error here: it is a line.
"""

from .lines import (
    PACKAGES,
    adapter_lines,
    face_pack_lines,
    folder_line,
    kind_lines,
    runtime_lines,
    version_lines,
)
from .looking import FOLDERS, examine, look_at_runtimes
from .report import COLOURS, MISSING, NOTE, OK, Line, as_page, as_table, render
from .sources import SOURCES
from .weights import SDXL, VIT_L14

__all__ = [
    "COLOURS",
    "FOLDERS",
    "MISSING",
    "NOTE",
    "OK",
    "PACKAGES",
    "SDXL",
    "SOURCES",
    "VIT_L14",
    "Line",
    "adapter_lines",
    "as_page",
    "as_table",
    "examine",
    "face_pack_lines",
    "folder_line",
    "kind_lines",
    "look_at_runtimes",
    "render",
    "runtime_lines",
    "version_lines",
]
