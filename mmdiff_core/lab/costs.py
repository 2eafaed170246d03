"""What drawing costs: seconds of the CPU, and the most memory that this process held meanwhile."""

from __future__ import annotations

import re
import time
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"  # what Linux takes for "the peak begins now" (proc(5), clear_refs)
KIB_PER_GIB = 1 << 20


class Meter:
    """A context: `seconds` of the CPU, which other processes on it do not change, and `memory`, the
    peak of the resident set in GiB; None where the system does not tell the peak of a part of a
    run."""

    seconds: float = 0.0
    memory: float | None = None

    def __enter__(self) -> Meter:
        self._knows = _forget_peak()
        self._began = time.process_time()
        return self

    def __exit__(self, *error) -> None:
        self.seconds = time.process_time() - self._began
        self.memory = _peak() if self._knows else None


def _forget_peak() -> bool:
    try:
        CLEAR.write_text(FORGET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _peak() -> float | None:
    found = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) / KIB_PER_GIB if found else None
