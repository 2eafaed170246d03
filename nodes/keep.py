"""Subjects as things people keep: save, load, mix, weigh."""
from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io, ui

from ..mmdiff_core.checkpoints.subject_file import SIDE, load_subject, save_subject
from ..mmdiff_core.host import files
from ..mmdiff_core.host.encode import MAX_WEIGHT
from ..mmdiff_core.method.subjects import PromptSubject, add_subject, name_key, numbers
from ..mmdiff_core.references.mix import METHODS, mix
from .aliases import schema
from .sockets import CATEGORY, MMDiff, MMDiffSubjects

NOTHING_YET = "(nothing in models/mmdiff_subjects yet)"     # choosing it tells which folders were searched


class SaveSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSaveSubject", display_name="Save MM-Diff Subject", category=CATEGORY, is_output_node=True,
            description="Writes each subject to models/mmdiff_subjects as a small .safetensors with pictures of its references. Load it "
                        "with Load MM-Diff Subject: no picture is encoded and no face detected again.",
            inputs=[
                MMDiffSubjects.Input("subjects", tooltip="The subjects to keep; each becomes a file of its name."),
                io.String.Input("prefix", default="", tooltip="Put before the names; may contain a folder, for example family/."),
                io.Boolean.Input("overwrite", default=False, tooltip="Off: a name that is taken gets a number."),
            ],
            outputs=[MMDiffSubjects.Output(display_name="subjects", tooltip="The subjects, unchanged.")],
        )

    @classmethod
    def execute(cls, subjects, prefix: str, overwrite: bool) -> io.NodeOutput:
        written = []
        for used in subjects:
            subject = used.subject
            path = files.subject_path(f"{prefix}{subject.name}", overwrite)
            save_subject(path, subject, used.weight)
            plural = "s" * (subject.references != 1)
            written.append(f"{path.name}: {subject.references} reference{plural}, {path.stat().st_size / 1024:.0f} KiB")
        return io.NodeOutput(subjects, ui=ui.PreviewText("\n".join(written)))


class LoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffLoadSubject", display_name="Load MM-Diff Subject", category=CATEGORY,
            description="A subject that was saved before, from models/mmdiff_subjects. It needs the MM-Diff checkpoint that made it.",
            inputs=[
                MMDiff.Input("mmdiff", tooltip="From Load MM-Diff; the checkpoint the subject was made with."),
                io.Combo.Input("file", options=files.list_subjects() or [NOTHING_YET], tooltip="Files of models/mmdiff_subjects."),
                io.String.Input("name", default="", tooltip="Another name for this graph; empty = as saved."),
                io.Float.Input("weight", default=1.0, min=0.0, max=MAX_WEIGHT, step=0.05, tooltip="Factor on its image branch."),
                MMDiffSubjects.Input("subjects", optional=True, tooltip="Earlier subjects; this one is added after them."),
            ],
            outputs=[
                MMDiffSubjects.Output(display_name="subjects", tooltip="Earlier subjects and this one, in order."),
                io.Image.Output(display_name="seen", tooltip="Small pictures of its references."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **kwargs) -> str:
        try:
            return str(files.find_subject(file).stat().st_mtime_ns)
        except FileNotFoundError:
            return ""

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        try:
            files.find_subject(file)
        except FileNotFoundError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, mmdiff, file: str, name: str, weight: float, subjects=()) -> io.NodeOutput:
        loaded = load_subject(files.find_subject(file), mmdiff.adapter.fingerprint, mmdiff.adapter.source)
        subject = replace(loaded, name=name.strip() or loaded.name)
        seen = torch.zeros(1, SIDE, SIDE, 3) if subject.thumbnails is None else subject.thumbnails.float() / 255
        return io.NodeOutput(add_subject(subjects or (), PromptSubject(subject, weight)), seen, ui=ui.PreviewImage(seen, cls=cls))


class MixSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffMixSubjects", display_name="MM-Diff Mix Subjects", category=CATEGORY,
            description="Several subjects become one: a face between two faces, or more references of the same person from several nodes.",
            inputs=[
                MMDiffSubjects.Input("subjects", tooltip="What is mixed."),
                io.String.Input("weights", default="", tooltip="One number per subject, \"0.7, 0.3\"; empty = equal parts."),
                io.Combo.Input("method", options=list(METHODS), default="average",
                               tooltip="average: weighted mean. spherical: along the arc between them, which keeps the vectors' lengths. "
                                       "together: all references side by side, for one person in several pictures."),
                io.String.Input("name", default="mix", tooltip="The new subject's name."),
                MMDiffSubjects.Input("others", optional=True, tooltip="Subjects that stay as they are; the mix is added after them."),
            ],
            outputs=[MMDiffSubjects.Output(display_name="subjects", tooltip="The others and the mix.")],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return True if name.strip() else "the mix has no name; give it one"

    @classmethod
    def execute(cls, subjects, weights: str, method: str, name: str, others=()) -> io.NodeOutput:
        given = numbers(weights, "weights") or (1.0,) * len(subjects)
        mixed = mix([s.subject for s in subjects], given, method, name.strip())
        return io.NodeOutput(add_subject(others or (), PromptSubject(mixed)))


class SubjectWeights(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSubjectWeights", display_name="MM-Diff Subject Weights", category=CATEGORY,
            description="How strongly a subject shows, over all pictures and in each picture of a batch. Nothing is encoded again.",
            inputs=[
                MMDiffSubjects.Input("subjects", tooltip="The subjects; those not named stay as they are."),
                io.String.Input("name", default="", tooltip="Whose weights; empty = all subjects'."),
                io.Float.Input("weight", default=1.0, min=0.0, max=MAX_WEIGHT, step=0.05,
                               tooltip="Factor on the image branch. 1 = as trained."),
                io.String.Input("per_picture", default="",
                                tooltip="Further factors, one per picture of the batch: \"1, 0.5, 0\". The last one stays for all that "
                                        "follow; empty = 1 for all."),
            ],
            outputs=[MMDiffSubjects.Output(display_name="subjects", tooltip="The subjects with their weights.")],
        )

    @classmethod
    def execute(cls, subjects, name: str, weight: float, per_picture: str) -> io.NodeOutput:
        chosen = {name_key(s.name) for s in subjects}
        if name.strip() and name_key(name) not in chosen:
            names = ", ".join(s.name for s in subjects)
            raise ValueError(f"there is no subject named {name.strip()!r}; there are: {names}")
        if name.strip():
            chosen = {name_key(name)}
        factors = numbers(per_picture, "per_picture", MAX_WEIGHT)
        return io.NodeOutput(tuple(
            replace(s, weight=weight, per_image=factors) if name_key(s.name) in chosen else s for s in subjects
        ))
