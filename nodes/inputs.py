"""Inputs that several nodes have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..mmdiff_core.host import files
from ..mmdiff_core.host.doctor.sources import FACE_PACK, RELEASED, SOURCES
from ..mmdiff_core.method.subjects import MAX_WEIGHT
from .sockets import MMDiffSubjects

MORE_IMAGES = range(2, 11)
NO_CHECKPOINT = "(nothing in models/mmdiff yet)"  # choosing it tells which folders were searched


def checkpoint(tooltip: str):
    """A combo of the checkpoints in models/mmdiff."""
    listed = files.list_checkpoints()
    combo = io.Combo.Input("checkpoint", options=listed or [NO_CHECKPOINT], tooltip=tooltip)
    pages = {RELEASED: SOURCES[files.CHECKPOINTS].page}
    return of_folders(combo, listed, files.CHECKPOINTS, "{}/*.bin", pages)


def face_models(name: str, tooltip: str, *more: str):
    """A combo of the face model packs in models/insightface/models, and `more`. Where there is none
    it offers the one that the released checkpoint needs."""
    installed = files.list_face_models()
    packs = installed or [FACE_PACK]
    combo = io.Combo.Input(
        name,
        options=[*packs, *more],
        default=FACE_PACK if FACE_PACK in packs else packs[0],
        tooltip=tooltip,
    )
    pages = {FACE_PACK: SOURCES[files.FACES].page}
    return of_folders(combo, [*installed, *more], files.FACES, "models/{}/*.onnx", pages)


def of_folders(
    combo: io.Combo.Input,
    installed: list[str],
    folder: str,
    pattern: str,
    pages: Mapping[str, str],
) -> io.Combo.Input:
    """The combo, with what web/missing_models.js asks of one whose entries are folders: the web
    page's own list of missing models looks for single files only.

    installed  entries that are there
    folder     the kind of model folder, below models/
    pattern    the files of an entry, below that folder; {} = the entry
    pages      entry -> where it can be had
    """
    # by attribute: hosts before 0.4 take no extra_dict for a combo, but send what is there
    combo.extra_dict = {
        "mmdiff_needs": {
            "installed": installed,
            "folder": folder,
            "pattern": pattern,
            "pages": dict(pages),
        }
    }
    return combo


def model_file(name: str, kind: str, tooltip: str):
    """A combo of the files that the host lists in models/<kind>."""
    listed = files.list_models(kind) or [f"(nothing in models/{kind} yet)"]
    return io.Combo.Input(name, options=listed, tooltip=tooltip)


def earlier_subjects():
    return MMDiffSubjects.Input(
        "subjects", optional=True, tooltip="Earlier subjects; this one is appended."
    )


def chain_output():
    return MMDiffSubjects.Output(
        display_name="subjects", tooltip="Earlier subjects followed by this one."
    )


def more_images() -> list:
    """An input `more` whose sockets `more.image_2`, `more.image_3` ... appear one by one, on hosts
    that have such inputs (ComfyUI 0.8 and newer)."""
    if not hasattr(io, "Autogrow"):
        return []
    socket = io.Image.Input("image", tooltip="A further reference image of the same subject.")
    template = io.Autogrow.TemplateNames(socket, [f"image_{i}" for i in MORE_IMAGES], min=0)
    return [
        io.Autogrow.Input(
            "more",
            template=template,
            optional=True,
            tooltip="Further reference images of the same subject, each of its own size; they come "
            "after image.",
        )
    ]


def subject_weight(tooltip: str):
    return io.Float.Input(
        "weight", default=1.0, min=0.0, max=MAX_WEIGHT, step=0.05, tooltip=tooltip
    )


def share(name: str, default: float, tooltip: str, step: float = 0.01, **options):
    """A number from 0 to 1."""
    bounds = {"min": 0.0, "max": 1.0} | options
    return io.Float.Input(name, default=default, step=step, tooltip=tooltip, **bounds)


def bounded():
    """`bound_self_attention` of nodes that give subjects regions."""
    return io.Boolean.Input(
        "bound_self_attention",
        default=False,
        optional=True,
        tooltip="Also stop self-attention between the regions, so that looks do not travel from "
        "one subject to another. Off costs nothing.",
    )


def window(what: str) -> list:
    """`start_percent` and `end_percent` of something."""
    return [
        share("start_percent", 0.0, f"Fraction of the denoising at which {what} starts."),
        share("end_percent", 1.0, f"Fraction of the denoising at which {what} ends."),
    ]


def check_window(values: Mapping[str, Any]) -> None:
    """ValueError where the window ends before it starts."""
    start, end = (values.get(f"{side}_percent") for side in ("start", "end"))
    if start is not None and end is not None and start >= end:
        raise ValueError(f"start_percent {start} must be less than end_percent {end}")


def model_output():
    return io.Model.Output(display_name="model", tooltip="Model for the sampler.")
