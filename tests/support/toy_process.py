"""One training process on the toy model: python toy_process.py half FOLDER CONFIG | two FOLDER"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from mmdiff_core.training.run.config import LoopConfig
from mmdiff_core.training.run.errors import RunError
from mmdiff_core.training.run.loop import fit

from support.paths import PACK, TESTS
from support.toy_run import CONFIG, Source, Toy, ask_to_stop, full_disk


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """This file as a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(PACK), str(TESTS))),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    return subprocess.Popen(
        [sys.executable, *launcher, str(Path(__file__)), *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def half(folder: Path, config: LoopConfig) -> None:
    """Trains until it gets a SIGTERM in its fiftieth step."""
    before = signal.getsignal(signal.SIGTERM)
    config = replace(config, workers=0)  # so that the batch is asked for in the step itself
    report = fit(Toy(), Source(at={98: ask_to_stop}), config, folder)
    print(
        report,
        f"stopped={report.stopped}",
        "handlers restored" if signal.getsignal(signal.SIGTERM) == before else "",
    )


def two(folder: Path) -> None:
    """One of two processes: the second gets a SIGTERM in the fourth step of the first fit, the
    first one's disk is full in the third, and the second one's example 6 is bad in the fourth.
    """
    accelerator = Accelerator(cpu=True)
    number, config, told = accelerator.process_index, replace(CONFIG, steps=8), []
    for source in (Source(at={14: ask_to_stop} if number else {}), Source()):
        report = fit(Toy(), source, config, folder)
        told.append(f"{'stopped' if report.stopped else 'done'} at {report.steps}")
    assert source.seen == [s * 4 + number * 2 for s in range(4, 8)], source.seen
    for place, options in (
        (folder, {"export": full_disk}),
        (folder / "new", {"model": Toy({6: float("nan")})}),
    ):
        try:
            fit(**{"model": Toy(), "source": Source(), "config": config, "folder": place} | options)
        except RunError as error:
            told.append(str(error))
    (folder.parent / f"told-{number}.json").write_text(json.dumps(told))
    accelerator.end_training()


if __name__ == "__main__":
    if sys.argv[1] == "half":
        half(Path(sys.argv[2]), LoopConfig.from_dict(json.loads(sys.argv[3])))
    else:
        two(Path(sys.argv[2]))
