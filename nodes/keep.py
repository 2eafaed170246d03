"""Save, load, mix and weight subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..mmdiff_core.checkpoints.subject_file import SIDE, load_subject, save_subject
from ..mmdiff_core.host import files
from ..mmdiff_core.method.subjects import (
    MAX_WEIGHT,
    PromptSubject,
    add_subject,
    checked_name,
    name_key,
    numbers,
)
from ..mmdiff_core.references.mix import METHODS, mix
from ..mmdiff_core.untrusted import quoted
from .aliases import schema
from .checks import CheckedNode, checked, told
from .inputs import chain_output, earlier_subjects, subject_weight
from .sockets import CATEGORY, MMDiff, MMDiffSubjects

NOTHING_YET = (
    "(nothing in models/mmdiff_subjects yet)"  # choosing it tells which folders were searched
)
IMAGE_BRANCH = "Factor on the subject's image branch. 1 = as trained."


class SaveSubject(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSaveSubject",
            display_name="Save MM-Diff Subject",
            category=CATEGORY,
            is_output_node=True,
            description="Saves each subject to models/mmdiff_subjects as a small .safetensors file "
            "with thumbnails of its references. Load MM-Diff Subject restores it "
            "without encoding images or detecting faces again.",
            inputs=[
                MMDiffSubjects.Input(
                    "subjects", tooltip="Subjects to save; each becomes a file with its name."
                ),
                io.String.Input(
                    "prefix",
                    default="",
                    tooltip="Text put before the file names; may contain a folder, for "
                    "example family/.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="On: replaces an existing file. Off: adds a number to a "
                    "name that is taken.",
                ),
            ],
            outputs=[
                MMDiffSubjects.Output(display_name="subjects", tooltip="The subjects, unchanged.")
            ],
        )

    @classmethod
    @checked
    def execute(cls, subjects, prefix: str, overwrite: bool) -> io.NodeOutput:
        written = []
        for used in subjects:
            subject = used.subject
            path = files.subject_path(f"{prefix}{subject.name}", overwrite)
            try:
                save_subject(path, subject, used.weight)
            except OSError as error:
                raise ValueError(
                    f"{quoted(subject.name)} cannot be saved as {path}: {error.strerror or error}; "
                    "check that the folder can be written to, or change the prefix"
                ) from error
            count, size = subject.references, path.stat().st_size / 1024
            written.append(f"{path.name}: {count} reference{'s' * (count != 1)}, {size:.0f} KiB")
        return io.NodeOutput(subjects, ui=ui.PreviewText("\n".join(written)))


class LoadSubject(CheckedNode):
    lookups: Mapping = {"file": files.find_subject}

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffLoadSubject",
            display_name="Load MM-Diff Subject",
            category=CATEGORY,
            description="Loads a saved subject from models/mmdiff_subjects. It needs the MM-Diff "
            "checkpoint that encoded the subject.",
            inputs=[
                MMDiff.Input(
                    "mmdiff",
                    tooltip="Adapter from Load MM-Diff; the checkpoint that encoded the subject.",
                ),
                io.Combo.Input(
                    "file",
                    options=files.list_subjects() or [NOTHING_YET],
                    tooltip="A file in models/mmdiff_subjects.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the subject in this graph; empty = the saved name.",
                ),
                subject_weight(IMAGE_BRANCH),
                earlier_subjects(),
            ],
            outputs=[
                chain_output(),
                io.Image.Output(display_name="seen", tooltip="Thumbnails of its references."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **kwargs) -> str:
        """Of a linked file nothing is known here but that it is one of those there are."""
        try:
            names = files.list_subjects() if file is None else [file]
            return str(max(files.find_subject(name).stat().st_mtime_ns for name in names))
        except (FileNotFoundError, ValueError):
            return ""

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """The host repeats the answer for every input that is named here."""
        return told(cls, file=file)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        if values.get("name", "").strip():
            checked_name(values["name"])

    @classmethod
    @checked
    def execute(cls, mmdiff, file: str, name: str, weight: float, subjects=()) -> io.NodeOutput:
        loaded = load_subject(
            files.find_subject(file),
            mmdiff.adapter.fingerprint,
            mmdiff.adapter.source,
            mmdiff.config,
        )
        subject = replace(loaded, name=name.strip() or loaded.name)
        seen = (
            torch.zeros(1, SIDE, SIDE, 3)
            if subject.thumbnails is None
            else subject.thumbnails.float() / 255
        )
        return io.NodeOutput(
            add_subject(subjects or (), PromptSubject(subject, weight)),
            seen,
            ui=ui.PreviewImage(seen, cls=cls),
        )


class MixSubjects(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffMixSubjects",
            display_name="MM-Diff Mix Subjects",
            category=CATEGORY,
            description="Combines several subjects into one: a face between two faces, or "
            "references of one person encoded in several nodes.",
            inputs=_mixture(),
            outputs=[
                MMDiffSubjects.Output(
                    display_name="subjects", tooltip="The other subjects followed by the mix."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, weights: str | None = None, method: str | None = None, name: str | None = None
    ) -> bool | str:
        return told(cls, weights=weights, method=method, name=name)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        numbers(values.get("weights", ""), "weights")
        checked_name(values.get("name", "mix"), "the mix")

    @classmethod
    @checked
    def execute(cls, subjects, weights: str, method: str, name: str, others=()) -> io.NodeOutput:
        given = numbers(weights, "weights") or (1.0,) * len(subjects)
        mixed = mix([s.subject for s in subjects], given, method, name.strip())
        return io.NodeOutput(add_subject(others or (), PromptSubject(mixed)))


def _mixture() -> list:
    return [
        MMDiffSubjects.Input("subjects", tooltip="Subjects to mix."),
        io.String.Input(
            "weights",
            default="",
            tooltip='One number per subject, for example "0.7, 0.3"; empty = equal shares.',
        ),
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default="average",
            tooltip="average: weighted mean. spherical: interpolation along the arc between the "
            "vectors, which keeps their lengths. together: all references side by side, for one "
            "person encoded in several nodes.",
        ),
        io.String.Input("name", default="mix", tooltip="Name of the new subject."),
        MMDiffSubjects.Input(
            "others",
            optional=True,
            tooltip="Subjects to keep unchanged; the mix is appended.",
        ),
    ]


class SubjectWeights(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSubjectWeights",
            display_name="MM-Diff Subject Weights",
            category=CATEGORY,
            description="Sets how strongly a subject affects the result, for the whole batch and "
            "for each image in it. Nothing is encoded again.",
            inputs=[
                MMDiffSubjects.Input(
                    "subjects", tooltip="Subjects; those that are not named stay unchanged."
                ),
                io.String.Input(
                    "name", default="", tooltip="Subject to change; empty = all subjects."
                ),
                subject_weight(IMAGE_BRANCH),
                io.String.Input(
                    "per_picture",
                    default="",
                    tooltip='Further factors, one per image of the batch: "1, 0.5, '
                    '0". The last one applies to all images after it; empty = '
                    "1 for all.",
                ),
            ],
            outputs=[
                MMDiffSubjects.Output(
                    display_name="subjects", tooltip="The subjects with their new weights."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, per_picture: str | None = None) -> bool | str:
        return told(cls, per_picture=per_picture)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        numbers(values.get("per_picture", ""), "per_picture", MAX_WEIGHT)

    @classmethod
    @checked
    def execute(cls, subjects, name: str, weight: float, per_picture: str) -> io.NodeOutput:
        chosen = {name_key(s.name) for s in subjects}
        if name.strip() and name_key(name) not in chosen:
            names = ", ".join(s.name for s in subjects) or "none"
            raise ValueError(f"no subject is named {quoted(name.strip())}; available: {names}")
        if name.strip():
            chosen = {name_key(name)}
        factors = numbers(per_picture, "per_picture", MAX_WEIGHT)
        return io.NodeOutput(
            tuple(
                replace(s, weight=weight, per_image=factors) if name_key(s.name) in chosen else s
                for s in subjects
            )
        )
