"""The report that the help page of MM-Diff Doctor and its image show, with nobody's folders."""

from __future__ import annotations

from dataclasses import asdict

from mmdiff_core.host.doctor.report import MISSING, NOTE, OK, Line, render
from mmdiff_core.host.doctor.sources import SOURCES

LINES = [
    Line(OK, "Versions", "ComfyUI 0.3.75"),
    Line(OK, "Versions", "torch 2.11.0, computing on cuda:0 NVIDIA GeForce RTX 4090"),
    Line(NOTE, "Folders", "mmdiff_subjects: /ComfyUI/models/mmdiff_subjects (does not exist)"),
    Line(
        MISSING,
        "MM-Diff checkpoints",
        f"no complete checkpoint. {SOURCES['mmdiff']} The small world does not need one.",
    ),
]

# as the node gives it to the page
OUTPUT = {"text": [render(LINES)], "lines": [asdict(line) for line in LINES]}
