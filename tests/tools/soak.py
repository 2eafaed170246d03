"""A long run of random prompts through one real server, some of them interrupted.

    COMFYUI_PATH=/path/to/ComfyUI python tests/tools/soak.py [--prompts 500] [--compared 60]

Every prompt that is not interrupted has to end in a latent. Afterwards some of them run again on
the same server and, in another order, on a fresh one: the latents have to be the same, bit by bit.
Prints the server's memory along the way. The exit status is 1 when anything failed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from support.server import Server  # noqa: E402
from support.soak import Soak, memory_of  # noqa: E402


def soak(home: Path, prompts: int, compared: int, seed: int) -> Soak:
    """Run everything; what became of it."""
    choose, found = random.Random(seed), Soak(seed)
    server = Server(Path(tempfile.mkdtemp(dir=home)))
    try:
        for number in range(prompts):
            delay = choose.uniform(0, 0.7) if choose.random() < 0.3 else None
            found.run(server, number, delay)
            found.memory.append(memory_of(server.process.pid))
            if number % 50 == 49:
                print(f"{number + 1} prompts, {found.memory[-1]:.0f} MiB", flush=True)
        again = choose.sample(sorted(found.hashes), min(compared, len(found.hashes)))
        for number in again:
            found.run(server, number)
    finally:
        server.stop()
    fresh = Server(Path(tempfile.mkdtemp(dir=home)))
    try:
        for number in choose.sample(again, len(again)):
            found.run(fresh, number)
    finally:
        fresh.stop()
    return found


def report(found: Soak, prompts: int, compared: int) -> str:
    """The sentences that are printed."""
    quarter = max(1, len(found.memory) // 4)
    early, late = found.memory[quarter : 2 * quarter], found.memory[-quarter:]
    lines = [
        f"{prompts} prompts, {found.interrupted} interrupted, {len(found.hashes)} latents; "
        f"{compared} compared on the same and on a fresh server; {len(found.failures)} failures",
        f"memory of the server: {statistics.median(early):.0f} MiB in the second quarter, "
        f"{statistics.median(late):.0f} MiB in the last one, at most {max(found.memory):.0f}",
        *found.failures[:20],
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--compared", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = soak(Path(home), args.prompts, args.compared, args.seed)
    print(report(found, args.prompts, min(args.compared, len(found.hashes))))
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
