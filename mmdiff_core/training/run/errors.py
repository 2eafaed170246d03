"""What can go wrong in a run."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run that cannot go on.

    The message says where it stopped, what is still good, and what to do.
    """
