"""Which tests go to one process together, and in which order the processes take them.

The longest first: so that at the end of a run no process works while the others have nothing left.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

# All files of the page with one frontend are one unit: they share a server, a browser, a page.
PAGES = ("the host's frontend", "the newest frontend")

# CPU seconds of the longest units, measured one by one; the others take less
SECONDS = {
    "the newest frontend": 400,
    "the host's frontend": 300,
    "host/test_parts_of_a_batch.py": 70,
    "server/test_workflow_runs.py": 70,
    "core/test_small_world.py": 60,
    "host/test_links.py": 60,
    "host/test_progress.py": 60,
    "server/test_nodes.py": 60,
    "tools/test_benchmark.py": 60,
    "core/test_face_reader.py": 45,
    "evaluation/test_protocol_run.py": 45,
    "host/test_images_and_masks.py": 40,
    "host/test_neighbours.py": 40,
    "server/test_site.py": 40,
    "host/test_core_nodes.py": 35,
    "host/test_prompt_fidelity.py": 30,
    "server/test_doctor.py": 30,
    "training/test_loop.py": 30,
    "training/test_training_run.py": 30,
    "evaluation/test_small_world_protocol.py": 25,
    "host/test_samplers.py": 25,
    "training/test_base_tasks.py": 25,
    "training/test_resuming.py": 25,
    "host/test_call_counts.py": 23,
    "host/test_parts.py": 22,
}


def unit_of(nodeid: str) -> str:
    """What one process runs from its beginning to its end: a file, or the page with a frontend."""
    file = nodeid.partition("::")[0]
    if not file.startswith("page/"):
        return file
    return next((name for name in PAGES if name in nodeid), PAGES[0])


def longest_first(items: list) -> None:
    """Put the items in order, those of one unit as they were."""
    items.sort(key=lambda item: -SECONDS.get(unit_of(item.nodeid), 0))


class Scheduling(LoadFileScheduling):
    """pytest-xdist's, with these units, in the order of the items."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
