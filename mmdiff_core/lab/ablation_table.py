"""The ablations' results as Markdown: the arms' seeds together, with intervals, and apart."""

from __future__ import annotations

from ..small_world.trials import Tally
from .arms import ARMS
from .tables import per_cent

TWO = ("two different", "two of a class")
HEAD = (
    "arm",
    "seeds",
    "images trained on",
    *(f"both right, {name}" for name in TWO),
    "own",
    "mixture",
    "stranger",
    "identity of one",
    "classes",
    "leakage",
    "text inside",
    "image inside",
    "images/s",
)


def table(results: dict) -> str:
    """A row per arm; shares in per cent with 95 % intervals, of every seed in brackets. Then a row
    per arm with its difference from the first arm that is there."""
    by_arm = {arm.about: _runs(results, arm.name) for arm in ARMS}
    there = {about: runs for about, runs in by_arm.items() if runs}
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    lines += ["| " + " | ".join(_row(about, runs)) + " |" for about, runs in there.items()]
    lines += ["", "| arm | both right | difference |", "| --- | --- | --- |"]
    first = None
    for about, runs in there.items():
        share = _both_right(runs)
        told = "" if first is None else _difference(share, first)
        lines.append(f"| {about} | {100 * share[0]:.1f} | {told} |")
        first = first or share
    return "\n".join(lines) + "\n"


def _runs(results: dict, arm: str) -> list[dict]:
    return [cells for name, cells in results.items() if name.rpartition("-")[0] == arm]


def _both_right(runs: list[dict]) -> tuple[float, int]:
    """The share of both questions' images, and how many there are."""
    both = _merged(runs, TWO[0]).merge(_merged(runs, TWO[1]))
    return both.complete / both.pictures, both.pictures


def _difference(one: tuple[float, int], other: tuple[float, int]) -> str:
    """In points, with the 95 % interval of two independent shares."""
    spread = 1.96 * sum(share * (1 - share) / n for share, n in (one, other)) ** 0.5
    apart = one[0] - other[0]
    low, high = apart - spread, apart + spread
    return f"{100 * apart:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _row(about: str, runs: list[dict]) -> list[str]:
    merged = {name: _merged(runs, name) for name in ("one", *TWO)}
    both = merged[TWO[0]].merge(merged[TWO[1]])
    cells = [about, str(len(runs)), _span([run["facts"]["images"] for run in runs])]
    for name in TWO:
        apart = [100 * run[name]["complete"] / run[name]["pictures"] for run in runs]
        each = ", ".join(f"{share:.0f}" for share in apart)
        cells.append(f"{per_cent(*merged[name].shares()['complete'])} [{each}]")
    shares = both.shares()
    cells += [per_cent(*shares[name]) for name in ("own", "mixture", "stranger")]
    cells += [per_cent(*merged["one"].shares()["identity"]), per_cent(*shares["classes"])]
    cells.append(f"{_mean([run['leakage'] for run in runs]):.1f}")
    for name in ("text_inside", "image_inside"):
        cells.append(f"{_mean([run['facts']['inside'][name] for run in runs]):.2f}")
    cells.append(f"{_mean([run['facts']['images_per_second'] for run in runs]):.0f}")
    return cells


def _merged(runs: list[dict], name: str) -> Tally:
    tally = Tally()
    for run in runs:
        tally = tally.merge(Tally(**run[name]))
    return tally


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
