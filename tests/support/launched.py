"""Python code in several real processes that know of each other as a launcher's do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from .paths import PACK, TESTS

COMMAND = "import sys; from mmdiff_core.commands import main; sys.exit(main(sys.argv[1:]))"


class Ended(NamedTuple):
    """Exit code and standard error of a process."""

    code: int
    said: str


def launch(arguments: Sequence[str], code: str = COMMAND, world: int = 2) -> list[Ended]:
    """Run the code with these arguments in `world` processes, until all have ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join((str(PACK), str(TESTS)))
        command = [sys.executable, "-c", code, *arguments]
        started.append(subprocess.Popen(command, cwd=PACK, env=env, stderr=subprocess.PIPE))
    said = [process.communicate(timeout=600)[1].decode() for process in started]
    return [Ended(process.returncode, text) for process, text in zip(started, said, strict=True)]
