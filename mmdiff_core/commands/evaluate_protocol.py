"""Score images under one of the field's protocols, and draw them where they are not there.

    python -m mmdiff_core evaluate PROTOCOL --data DIR --images [NAME=]DIR ... --out DIR
    python -m mmdiff_core evaluate PROTOCOL --data DIR --images DIR --draw URL --graph GRAPH.json
    python -m mmdiff_core evaluate small-world --out DIR

Protocols: dreambench, dreambench-pairs, dreambench-plus, fastcomposer, xverse-single, xverse-multi,
ms-bench; people and things for a folder of yours; small-world, which needs no other files.

--data is a copy of the protocol's set. Each --images folder holds what one tool drew, as
images/SUBJECT[+SUBJECT...]/PROMPT/N.png, and may say how in manifest.json. --out gets report.html,
report.md, results.json and scores.csv; embeddings are kept there, so start again to go on. Start it
with torchrun or accelerate launch to share the work among processes; the numbers are the same.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

SMALL_WORLD = "small-world"
NAMES = (
    "dreambench",
    "dreambench-pairs",
    "dreambench-plus",
    "fastcomposer",
    "xverse-single",
    "xverse-multi",
    "ms-bench",
    "people",
    "things",
    SMALL_WORLD,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""

    def add(name: str, text: str, **options) -> None:
        parser.add_argument(name, help=text, **options)

    add("protocol", "its name", choices=NAMES, metavar="PROTOCOL")
    add("--data", "folder with the protocol's set", type=Path)
    add("--images", "folders of images, each with a NAME= before it if you like", nargs="+")
    add("--out", "folder for the report; without it nothing is scored", type=Path)
    add(
        "--models",
        "folders with the models that score, or ComfyUI's models folder (default: "
        "models/evaluation and models of the ComfyUI that is found)",
        nargs="+",
        type=Path,
    )
    add("--without", "leave out what needs these models", nargs="+", default=[], metavar="MODEL")
    add("--faces", "InsightFace pack for faces (default: buffalo_l)", default="buffalo_l")
    add("--device", "of torch; the default is each process's GPU, else the CPU")
    add("--weights", "files whose hashes the results shall keep", nargs="+", type=Path, default=[])
    add("--draw", "address of a running ComfyUI that draws what is missing", metavar="URL")
    add("--graph", "graph in API format that draws one image", type=Path)
    add("--set", "other values in the graph", nargs="+", default=[], metavar="NODE.INPUT=VALUE")
    add("--seed", "of the first image of each prompt (default: 0)", type=int, default=0)
    add("--plain", "draw the base alone, without subjects", action="store_true")
    add("--count", "images, small-world only (default: 64)", type=int, default=64)
    add("--adapter", "file, small-world only (default: the one in the pack)", type=Path)


def run(args: argparse.Namespace) -> int:
    """Draw and score; progress goes to stderr, the table to stdout."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if args.protocol == SMALL_WORLD:
            return _small_world(args)
        _check(args)
        return _protocol(args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; start again to go on\n")
        return 130


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _small_world(args: argparse.Namespace) -> int:
    from ..host.start import use_comfyui
    from .lab import needs_lab

    if args.out is None:
        raise ValueError("name a folder for the report with --out DIR")
    if args.count < 4:
        raise ValueError(f"--count is {args.count}; expected at least 4, one of each question")
    needs_lab()
    use_comfyui(cpu=True)
    from ..evaluation.report import write_report
    from ..lab.protocol import run_small_world

    results = run_small_world(args.out, args.count, args.adapter, _command(args), _say)
    write_report(results, args.out)
    return show(args.out)


def _check(args: argparse.Namespace) -> None:
    """ValueError for what is missing on the command line."""
    for name in ("data", "images"):
        if getattr(args, name) is None:
            raise ValueError(f"name the folder with --{name}; --help says what it holds")
    if not args.data.is_dir():
        raise ValueError(f"--data {args.data} is not a folder")
    if args.draw and (len(args.images) != 1 or args.graph is None):
        raise ValueError("--draw needs one folder in --images and a graph in --graph")
    if args.out is None and not args.draw:
        raise ValueError("name a folder for the report with --out DIR, or draw with --draw URL")


def _protocol(args: argparse.Namespace) -> int:
    from ..evaluation.protocols import PROTOCOLS
    from ..evaluation.run import Drawn
    from ..processes import Processes

    protocol = PROTOCOLS[args.protocol]
    test_set = protocol.read(args.data)
    pairs = [each.rpartition("=") for each in args.images]
    drawn = [Drawn(name or Path(folder).name, Path(folder)) for name, _, folder in pairs]
    with Processes(args.device) as processes:
        if args.draw and processes.main:
            _draw(args, protocol, test_set, drawn[0].folder)
        processes.wait()
        return 0 if args.out is None else _score(args, protocol, test_set, drawn, processes)


def _draw(args: argparse.Namespace, protocol, test_set, folder: Path) -> None:
    from ..evaluation.comfy_api import ComfyServer
    from ..evaluation.drawing import Drawing, draw_set, read_template

    template = read_template(args.graph, args.set)
    drawing = Drawing(template, protocol.images, args.seed, args.plain, protocol.name)
    draw_set(ComfyServer(args.draw), test_set, drawing, folder, _say)


def _score(args: argparse.Namespace, protocol, test_set, drawn, processes) -> int:
    """Embed this process's share; the first process waits for all, scores and writes."""
    from ..evaluation.extractors import file_hash
    from ..evaluation.measures import jobs_of
    from ..evaluation.report import write_report
    from ..evaluation.run import evaluate
    from ..evaluation.store import Store, embed_all

    measures = protocol.chosen(frozenset(args.without))
    store = Store(args.out / "embeddings", _extractors(args, measures, processes.device))
    shown = [each for row in drawn for each in row.shown(test_set, protocol.images)]
    jobs = jobs_of(measures, test_set, shown)
    embed_all(jobs, store, processes.rank, processes.world, _say)
    processes.wait()
    if processes.main:
        weights = {path.name: file_hash(path) for path in args.weights}
        told = (weights, _command(args))
        results = evaluate(protocol, test_set, drawn, measures, store, *told)
        write_report(results, args.out)
        show(args.out)
    return 0


def _extractors(args: argparse.Namespace, measures, device) -> list:
    """The models that the measures need. FileNotFoundError names all that are not there."""
    from ..evaluation.extractors import EXTRACTORS, arcface, find_folder, load_extractor

    roots = args.models or own_folders()
    known = {**EXTRACTORS, "arcface": arcface(args.faces)}
    if unknown := sorted(set(args.without) - set(known)):
        raise ValueError(f"--without {unknown[0]}: there is no such model; {', '.join(known)}")
    names = dict.fromkeys(measure.extractor for measure in measures)
    needed = [known[name] for name in names]
    lacking = {}
    for extractor in needed:
        try:
            find_folder(extractor, roots)
        except FileNotFoundError as error:
            lacking[extractor.name] = str(error)
    if lacking:
        rest = f"Or leave out what needs them: --without {' '.join(lacking)}"
        raise FileNotFoundError(" ".join([*lacking.values(), rest]))
    return [load_extractor(extractor, roots, device) for extractor in needed]


def own_folders() -> list[Path]:
    """Where the models that score are looked for. FileNotFoundError without ComfyUI."""
    from ..host.start import find_comfyui

    try:
        models = find_comfyui() / "models"
    except FileNotFoundError:
        raise FileNotFoundError("name the folders with the models with --models DIR") from None
    return [models / "evaluation", models]


def _command(args: argparse.Namespace) -> str:
    return f"python -m mmdiff_core evaluate {args.protocol} {options_of(args, 'protocol')}"


def options_of(args: argparse.Namespace, *but: str) -> str:
    """The options that were given, without folders of this machine."""
    told = []
    for name, value in vars(args).items():
        if value and name not in ("command", *but):
            values = value if isinstance(value, list) else [value]
            shown = [os.path.basename(str(v).rstrip("/")) for v in values]
            option = f"--{name.replace('_', '-')} {' '.join(map(shlex.quote, shown))}"
            told.append(option.replace(" True", ""))
    return " ".join(told)


def show(out: Path) -> int:
    """Print the table, and where the report is."""
    from ..evaluation.report import FILES

    sys.stdout.write((out / "report.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"\n{', '.join(FILES)} are in {out}\n")
    return 0
