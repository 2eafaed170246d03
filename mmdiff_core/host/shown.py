"""What a node showed in the web page when it last ran, where the host answers it from its cache.

ComfyUI sends the page what a cached node had shown only of output nodes; from 0.19 on also of
nodes with `has_intermediate_output`. For older hosts the page asks for it here. It is in the
host's own history: there a run is looked for whose node had the same class and values, and the
same nodes before it, which is how the host's cache finds a result. Nothing is kept here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from comfy_execution.graph_utils import is_link

from .live import running_server

ROUTE = "/mmdiff/shown/{prompt_id}"  # ?node=1&node=2

Prompt = Mapping[str, Mapping[str, Any]]  # a graph in API format


def serve_last_shown(kinds: Collection[str]) -> None:
    """Add the route for nodes of these classes to the server, where there is one without it."""
    server = running_server()
    if server is None or ROUTE in (getattr(route, "path", None) for route in server.routes):
        return
    from aiohttp import web  # a server has it

    async def answer(request) -> web.Response:
        asked, nodes = request.match_info["prompt_id"], request.query.getall("node", [])
        found = answer_of(server.prompt_queue, asked, nodes, kinds)
        return web.json_response(found or {}, status=200 if found else 404)

    server.routes.get(ROUTE)(answer)


def answer_of(queue, asked: str, nodes: Collection[str], kinds: Collection[str]) -> dict | None:
    """What these nodes of a running or finished prompt showed, and the id of its workflow; None for
    a prompt that the queue does not know."""
    running = queue.get_current_queue_volatile()[0]
    finished = queue.get_history(map_function=lambda entry: entry)  # without a deep copy of all
    entries = [*running, *(entry["prompt"] for entry in finished.values())]
    mine = next((entry for entry in entries if entry[1] == asked), None)
    if mine is None:
        return None
    wanted = {node for node in nodes if mine[2].get(node, {}).get("class_type") in kinds}
    runs = ((run["prompt"][2], run["outputs"]) for run in reversed([*finished.values()]))
    return {"workflow": _workflow(mine[3]), "shown": last_shown(mine[2], wanted, runs)}


def last_shown(
    prompt: Prompt, nodes: Collection[str], runs: Iterable[tuple[Prompt, Mapping[str, Any]]]
) -> dict[str, Any]:
    """The output of these nodes in the first of the runs where a node did the same. `runs`: each
    one's prompt and its outputs by node, the newest first."""
    made: dict[str, str | None] = {}
    wanted: dict[str, list[str]] = {}
    for node in nodes:
        if (sign := signature(prompt, node, made)) is not None:
            wanted.setdefault(sign, []).append(node)
    kinds = {prompt[node]["class_type"] for node in nodes}
    found = {}
    for earlier, outputs in runs:
        if not wanted:
            break
        made = {}
        for node, shown in outputs.items():
            if earlier.get(node, {}).get("class_type") in kinds:
                same = wanted.pop(signature(earlier, node, made), ())
                found.update(dict.fromkeys(same, shown))
    return found


def signature(prompt: Prompt, node: str, made: dict[str, str | None]) -> str | None:
    """The same text for nodes of the same class with the same values and the same nodes before
    them, whatever their numbers; None where a node is missing, or comes before itself. `made`:
    those of this prompt so far."""
    if node not in made:
        made[node] = None  # what a circle finds
        made[node] = _signature(prompt, node, made)
    return made[node]


def _signature(prompt: Prompt, node: str, made: dict[str, str | None]) -> str | None:
    if node not in prompt:
        return None
    parts = [prompt[node]["class_type"]]
    for name, value in sorted(prompt[node]["inputs"].items()):
        if not is_link(value):
            parts.append([name, value])
        elif (before := signature(prompt, value[0], made)) is not None:
            parts.append([name, before, value[1], "link"])
        else:
            return None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _workflow(extra: Mapping[str, Any]) -> str | None:
    """The id of the workflow that a page queued; None for a prompt from elsewhere."""
    for name in ("extra_pnginfo", "workflow", "id"):
        extra = extra.get(name) if isinstance(extra, Mapping) else None
    return extra if isinstance(extra, str) else None
