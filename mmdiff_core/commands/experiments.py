"""Run a named experiment, or all of them: in the small world, or in a running ComfyUI.

    python -m mmdiff_core experiments NAME OUT --small-world
    python -m mmdiff_core experiments NAME OUT --comfy URL --data DIR
    python -m mmdiff_core experiments NAME OUT --comfy URL --data DIR --check

Experiments: references (1 to 5), conditions (clean, half covered, blurred, dark, mirrored, other
pose), subjects (two and three, free and in regions, plain and busy backgrounds), alike (two who are
hard to tell apart), constraints (off, tokens, nouns, self-attention), temporal (frames of a batch),
tuning (beside fine-tuning for each subject); all.

OUT gets report.html, report.md, results.json and scores.csv, and the images; with `all` a folder
for each experiment. Start again to go on. The small world needs nothing else, in a clone of the
repository. With --comfy, --data is a folder of yours as `evaluate people` takes it (its prompts are
not used), and all that an experiment needs is listed and looked for before anything is drawn;
--check stops there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from .evaluate_protocol import options_of, own_folders, show

NAMES = (
    "references",
    "conditions",
    "subjects",
    "alike",
    "constraints",
    "temporal",
    "tuning",
)
ALL = "all"
LEAST = 8  # images of each row: one batch of frames, or one individual to fine-tune on
PORTRAITS = Path(__file__).resolve().parents[2] / "api" / "portraits.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""

    def add(name: str, text: str, **options) -> None:
        parser.add_argument(name, help=text, **options)

    add("name", "of the experiment, or all", choices=(*NAMES, ALL), metavar="NAME")
    add("out", "folder for images and report", type=Path)
    add("--small-world", "draw and score in the small world, on the CPU", action="store_true")
    add("--count", "images of each row (default: 64)", type=int, default=64)
    add("--adapter", "small world: file (default: the one in the pack)", type=Path)
    add("--comfy", "address of a running ComfyUI that draws", metavar="URL")
    add("--data", "folder with subjects.json and an images folder of each subject", type=Path)
    add("--kind", "what the subjects are (default: people)", choices=("people", "things"))
    add("--graph", "graph in API format that draws one image (default: portraits)", type=Path)
    add("--set", "other values in the graph", nargs="+", default=[], metavar="NODE.INPUT=VALUE")
    add("--seed", "of the first image of each row (default: 0)", type=int, default=0)
    add("--models", "folders with the models that score", nargs="+", type=Path)
    add("--without", "leave out what needs these models", nargs="+", default=[], metavar="MODEL")
    add("--faces", "InsightFace pack that scores faces (default: buffalo_l)", default="buffalo_l")
    add("--device", "of the models that score; the default is a GPU, else the CPU")
    add("--weights", "files whose hashes the results shall keep", nargs="+", type=Path, default=[])
    add("--check", "list what is needed and what is missing, and stop", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Draw and score; progress goes to stderr, the table to stdout."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if args.count < LEAST:
        raise ValueError(f"--count is {args.count}; expected at least {LEAST} images of each row")
    if args.small_world == bool(args.comfy):
        raise ValueError("say where to draw: --small-world, or --comfy URL of a running ComfyUI")
    try:
        return _small_world(args) if args.small_world else _real(args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; start again to go on\n")
        return 130


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _folders(args: argparse.Namespace) -> list[tuple[str, Path]]:
    if args.name != ALL:
        return [(args.name, args.out)]
    return [(name, args.out / name) for name in NAMES]


def _command(args: argparse.Namespace) -> str:
    given = options_of(args, "name", "out", *(("faces",) if args.small_world else ()))
    return f"python -m mmdiff_core experiments {args.name} {args.out.name} {given}"


def _small_world(args: argparse.Namespace) -> int:
    from ..host.start import use_comfyui
    from .lab import needs_lab

    needs_lab()
    use_comfyui(cpu=True)
    from ..evaluation.experiments import EXPERIMENTS
    from ..evaluation.report import write_report
    from ..lab.experiments import run_experiment

    for name, out in _folders(args):
        asked = (args.count, args.adapter, _command(args))
        write_report(run_experiment(EXPERIMENTS[name], out, *asked, _say), out)
        show(out)
    return 0


# ---------------------------------------------------------------- in a running ComfyUI


def _real(args: argparse.Namespace) -> int:
    """All that is needed for all of the experiments is looked for before the first is drawn."""
    from ..evaluation.experiment_needs import check, needs_of, told, without_windows
    from ..evaluation.extractors import file_hash, load_extractor
    from ..evaluation.store import Store
    from ..processes import Processes

    server, plans, extractors = _plans(args)
    roots, missing = args.models or own_folders(), []
    for plan in plans:
        given = (plan.template, list(plan.subjects.values()), extractors, roots)
        needs = needs_of(plan.experiment, server, *given)
        _say(f"{plan.experiment.name}: {plan.experiment.title}\n{told(needs)}")
        for cell in without_windows(plan.experiment, server.about()[0]):
            _say(f"  row left out: {cell.name}, which needs a newer ComfyUI")
        missing += needs
    check(missing)
    if args.check:
        return 0
    weights = {path.name: file_hash(path) for path in args.weights}
    with Processes(args.device) as processes:
        loaded = [load_extractor(each, roots, processes.device) for each in extractors]
        for plan in plans:
            _run(args, server, plan, Store(args.out / "embeddings", loaded), weights)
    return 0


def _plans(args: argparse.Namespace):
    """The server, a plan for each experiment, and the models that score."""
    from ..evaluation.comfy_api import ComfyServer
    from ..evaluation.drawing import read_template
    from ..evaluation.experiment_graphs import check_template
    from ..evaluation.experiment_run import Plan
    from ..evaluation.experiment_sets import with_real_weights
    from ..evaluation.experiments import EXPERIMENTS
    from ..evaluation.extractors import EXTRACTORS, arcface
    from ..evaluation.protocols import PROTOCOLS
    from ..evaluation.set_readers import read_subjects

    if args.data is None or not args.data.is_dir():
        raise ValueError("name the folder with your subjects with --data DIR; --help says more")
    if args.kind == "things" and args.graph is None:
        raise ValueError("--kind things needs a graph that draws things, with --graph FILE")
    subjects = read_subjects(args.data)
    template = read_template(args.graph or PORTRAITS, args.set)
    check_template(template)
    known = {**EXTRACTORS, "arcface": arcface(args.faces)}
    if unknown := sorted(set(args.without) - set(known)):
        raise ValueError(f"--without {unknown[0]}: there is no such model; {', '.join(known)}")
    measures = PROTOCOLS[args.kind or "people"].chosen(frozenset(args.without))
    if all(measure.kind != "likeness" for measure in measures):
        raise ValueError("no measure of likeness is left; name fewer models with --without")
    plans = []
    for name, out in _folders(args):
        chosen = with_real_weights(EXPERIMENTS[name])
        plans.append(Plan(chosen, subjects, measures, template, args.count, args.seed, out))
    names = dict.fromkeys(measure.extractor for measure in measures)
    return ComfyServer(args.comfy), plans, [known[name] for name in names]


def _run(args: argparse.Namespace, server, plan, store, weights) -> None:
    from dataclasses import replace

    from ..evaluation.experiment_needs import without_windows
    from ..evaluation.experiment_run import run_real
    from ..evaluation.report import write_report

    lost = without_windows(plan.experiment, server.about()[0])
    cells = tuple(cell for cell in plan.experiment.cells if cell not in lost)
    plan = replace(plan, experiment=replace(plan.experiment, cells=cells))
    results = run_real(server, plan, store, weights, _command(args), _say)
    if lost:
        names = ", ".join(cell.name for cell in lost)
        left = f"Left out, as this ComfyUI's context windows fail for a batch: {names}."
        results = replace(results, notes=(*results.notes, left))
    write_report(results, plan.out)
    show(plan.out)
