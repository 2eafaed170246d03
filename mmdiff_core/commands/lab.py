"""What the commands of the lab share."""
from __future__ import annotations

from pathlib import Path

LAB = Path(__file__).resolve().parents[1] / "lab"


def needs_lab() -> None:
    """FileNotFoundError where the pack was installed from the registry, which leaves the lab out.
    """
    if not LAB.is_dir():
        raise FileNotFoundError(
            f"{LAB} is not there: the small world's experiments come with the repository only; "
            "clone it to run this command"
        )
