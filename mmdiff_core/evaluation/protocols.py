"""The field's protocols as data: sets, images per prompt, scores, and what others published.

Published numbers stand only beside scores of the same definition and model; those that were made
with a model that is not here have a column of their own. Sources: the table of each protocol's
paper, as far as it is public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .code_sets import FASTCOMPOSER, MS_DIFFUSION, read_fastcomposer, read_msbench
from .measures import MEASURES, Measure
from .set_readers import (
    DREAMBOOTH,
    PLUS,
    UNO,
    XVERSE,
    read_dreambench,
    read_dreambench_plus,
    read_own,
    read_pairs,
    read_xverse,
)
from .sets import TestSet

PEOPLE = ("multi-id", "greedy-min", "hungarian-min", "id-conf", "count", "duplicates", "copy-paste")
LOST = ("scr-0.4", "scr-0.5", "scr-0.6")


@dataclass(frozen=True)
class Peer:
    """What somebody published under this protocol: values by the name of the measure.

    note  what keeps it from being compared, if anything
    """

    name: str
    values: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    page       where its set is; `data` says what the folder holds
    images     per prompt
    measures   by name; the first likeness and the first prompt measure lead the report
    theirs     columns of published numbers that no measure here makes -> why
    published  the settings that its images are drawn with, where they are known
    """

    name: str
    title: str
    page: str
    data: str
    read: Callable[[Path], TestSet]
    images: int
    measures: tuple[str, ...]
    peers: tuple[Peer, ...] = ()
    theirs: Mapping[str, str] = field(default_factory=dict)
    published: str = ""

    def chosen(self, without: frozenset[str] = frozenset()) -> tuple[Measure, ...]:
        """Its measures but those whose extractor is in `without`. ValueError if none is left."""
        named = [MEASURES[name] for name in self.measures]
        left = tuple(measure for measure in named if measure.extractor not in without)
        if not left:
            raise ValueError(f"without {', '.join(sorted(without))} nothing of {self.name} is left")
        return left


def _peers(columns: tuple[str, ...], rows: Mapping[str, tuple[float | None, ...]]) -> tuple:
    made = []
    for name, numbers in rows.items():
        pairs = zip(columns, numbers, strict=True)
        made.append(Peer(name, {k: v for k, v in pairs if v is not None}))
    return tuple(made)


DREAMBENCH = Protocol(
    "dreambench",
    "DreamBench protocol",
    DREAMBOOTH,
    "its repository: dataset/prompts_and_classes.txt and dataset/<subject>/*.jpg",
    read_dreambench,
    4,
    ("dino", "clip-i", "clip-t", *LOST),
    _peers(
        ("dino", "clip-i", "clip-t"),
        {
            "real photos": (0.774, 0.885, None),
            "DreamBooth": (0.668, 0.803, 0.305),
            "IP-Adapter": (0.667, 0.813, 0.289),
            "UNO": (0.760, 0.835, 0.304),
            "USO": (0.777, 0.838, 0.317),
        },
    ),
    published="30 subjects, 25 prompts each, 4 images: 3,000",
)
PAIRS = Protocol(
    "dreambench-pairs",
    "DreamBench pairs protocol",
    UNO,
    "datasets/ of its repository (dreambench_multiip.json), with DreamBench as dreambooth/ in it",
    read_pairs,
    6,
    ("clip-i-pairs", "dino-pairs", "clip-t", *LOST),
    _peers(
        ("clip-i-pairs", "dino-pairs"),
        {"MOSAIC": (76.3, 56.8), "XVerse": (73.5, 53.7), "MS-Diffusion": (72.6, 52.5)},
    ),
    published="30 pairs, 25 prompts each, 6 images: 4,500; one fixed reference of each subject",
)
DREAMBENCH_PLUS = Protocol(
    "dreambench-plus",
    "DreamBench++ protocol",
    PLUS,
    "its data folder: images/**/NN.jpg and captions/**/NN.txt",
    read_dreambench_plus,
    1,
    ("dino-plus", "dinov2-plus", "clip-i-plus", "clip-t-plus", *LOST),
    published="150 images, 9 prompts each, one image: 1,350",
)
PORTRAITS = Protocol(
    "fastcomposer",
    "FastComposer protocol",
    FASTCOMPOSER,
    "its repository (evaluation/single_object/data.py) with data/celeba_test_single/<person>/*.jpg",
    read_fastcomposer,
    4,
    ("identity-facenet", "clip-t-l14", "identity", *PEOPLE),
    _peers(
        ("identity-facenet", "clip-t-l14"),
        {
            "FastComposer": (0.514, 0.243),
            "Subject-Diffusion": (0.605, 0.228),
            "IP-Adapter": (0.520, 0.201),
        },
    ),
    published="15 people, 40 prompts, 4 images: 2,400; 512 px, 50 steps, CFG 5, alpha 0.5",
)
XVERSE_MEASURES = ("id-sim", "id-conf", "count", "clip-i-pairs", "dino-pairs", "clip-t", *LOST)
XVERSE_THEIRS = {
    "id-sim-irse50": "ID-Sim (IR-SE50): theirs only, ours is ArcFace's",
    "id-conf-irse50": "ID-Conf (IR-SE50): theirs only, ours is ArcFace's",
    "ip-sim": "IP-Sim: theirs only, it needs crops by grounding and segmentation",
}
XVERSE_SINGLE = Protocol(
    "xverse-single",
    "XVerseBench single",
    XVERSE,
    "its repository, with assets/XVerseBench",
    partial(read_xverse, name="single"),
    4,
    XVERSE_MEASURES,
)
XVERSE_MULTI = Protocol(
    "xverse-multi",
    "XVerseBench several",
    XVERSE,
    "its repository, with assets/XVerseBench",
    partial(read_xverse, name="multi"),
    4,
    XVERSE_MEASURES,
    _peers(
        tuple(XVERSE_THEIRS),
        {
            "MS-Diffusion": (39.0, 66.4, 71.0),
            "UNO": (31.8, 61.1, 67.0),
            "DreamO": (50.2, 68.7, 64.6),
            "XVerse": (66.6, 72.4, 71.5),
            "UMO-OmniGen2": (71.6, 77.7, 73.8),
        },
    ),
    XVERSE_THEIRS,
)
MS_BENCH = Protocol(
    "ms-bench",
    "MS-Bench, scored on whole images",
    MS_DIFFUSION,
    "its repository: msbench/ and msdiffusion/dataset/prompts/msbench.py",
    read_msbench,
    1,
    ("clip-i-pairs", "dino-pairs", "clip-t", *LOST),
    published="1,148 combinations of two or three subjects, 4,488 prompts",
)
OWN_PEOPLE = Protocol(
    "people",
    "people of yours",
    "",
    "subjects.json and <subject>/*.jpg",
    read_own,
    4,
    ("identity", "clip-t", *PEOPLE),
)
OWN_THINGS = Protocol(
    "things",
    "things of yours",
    "",
    "subjects.json and <subject>/*.jpg",
    read_own,
    4,
    ("dino", "clip-i", "clip-t", *LOST),
)
PROTOCOLS = {
    each.name: each
    for each in (
        DREAMBENCH,
        PAIRS,
        DREAMBENCH_PLUS,
        PORTRAITS,
        XVERSE_SINGLE,
        XVERSE_MULTI,
        MS_BENCH,
        OWN_PEOPLE,
        OWN_THINGS,
    )
}
