"""Random prompts through a real server: a few of those of `tests/tools/soak.py`."""

from __future__ import annotations

from support.soak import Soak


def test_random_prompts_end_in_the_same_latents_when_they_run_again(server):
    found = Soak()
    for number in (0, 1, 2, 3, 2, 0):
        found.run(server, number, interrupt_after=0.1 if number == 1 else None)
    assert found.failures == [] and len(found.hashes) + found.interrupted == 4
