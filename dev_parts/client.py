"""The demo's client, which runs with the host's Python: upload, queue, follow, save."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .process import DevError, say


@dataclass
class Stages:
    """How long each node of the workflow took, from the server's messages in their order."""

    titles: Mapping[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    current: str | None = None
    since: float = 0.0
    shown: int = -1

    def enter(self, node: str | None) -> None:
        """Close the node that ran until now and begin the next (None: there is none)."""
        now = time.monotonic()
        if self.current is not None:
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self.since
        self.current, self.since, self.shown = node, now, -1

    def progress(self, value: int, total: int) -> None:
        """Redraw the bar in a terminal; elsewhere print a line for each quarter."""
        share = value / max(total, 1)
        title, marks = self.titles.get(self.current or "", "working"), "#" * int(share * 30)
        bar = f"  {title} [{marks:.<30}] {value}/{total}"
        live = sys.stdout.isatty()
        if live or int(share * 4) != self.shown:
            print(
                f"\r{bar}" if live else bar,
                end="\n" if not live or value >= total else "",
                flush=True,
            )
        self.shown = int(share * 4)

    def table(self) -> str:
        """One line a stage, and their sum."""
        rows = [
            (self.titles.get(node, f"node {node}"), spent) for node, spent in self.seconds.items()
        ]
        rows.append(("all stages", sum(self.seconds.values())))
        width = max(len(title) for title, _ in rows)
        return "\n".join(f"  {title:<{width}}  {spent:7.2f} s" for title, spent in rows)


def titles_of(workflow: Mapping[str, Any]) -> dict[str, str]:
    """Node id -> the name to show for it."""
    return {
        key: node.get("_meta", {}).get("title") or node["class_type"]
        for key, node in workflow.items()
    }


def refusal(answer: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The server's reasons for refusing a workflow, a line for each fault."""
    error = answer.get("error") or {}
    first = (
        error
        if isinstance(error, str)
        else f"{error.get('message', '')} {error.get('details', '')}".strip()
    )
    faults = [
        f"  {titles.get(key, key)}: {fault.get('message', '')}: {fault.get('details', '')}"
        for key, node in (answer.get("node_errors") or {}).items()
        for fault in node.get("errors", [])
    ]
    return "\n".join([first, *faults]).strip()


async def submit(http: Any, url: str, workflow: Mapping[str, Any], client: str) -> str:
    """Queue the workflow; its id, or an error with the server's reasons."""
    async with http.post(f"{url}/prompt", json={"prompt": workflow, "client_id": client}) as reply:
        answer = await reply.json(content_type=None)
    reasons = refusal(answer, titles_of(workflow))
    if "prompt_id" not in answer:
        raise DevError(f"ComfyUI refused the workflow: {reasons}")
    if reasons:
        say(f"ComfyUI leaves part of the workflow out: {reasons}")
    return str(answer["prompt_id"])


async def follow(socket_: Any, prompt: str, stages: Stages) -> None:
    """Read the server's messages until the workflow is done, and keep time."""
    async for message in socket_:
        event = json.loads(message.data) if isinstance(message.data, str) else {}
        kind, data = event.get("type"), event.get("data") or {}
        if data.get("prompt_id", prompt) != prompt:
            continue
        if kind == "executing":
            stages.enter(data.get("node"))
        elif kind == "progress":
            stages.progress(int(data["value"]), int(data["max"]))
        elif kind in ("execution_error", "execution_interrupted"):
            title = stages.titles.get(str(data.get("node_id")), data.get("node_type"))
            problem = f"{data.get('exception_type', kind)}: {data.get('exception_message', '')}"
            raise DevError(f"Stage {title} failed: {problem}")
        elif kind == "execution_success":
            return stages.enter(None)
    raise DevError("The server closed the connection before the workflow was done.")


async def outputs_of(http: Any, url: str, prompt: str) -> dict[str, Any]:
    """What the workflow's nodes put out.

    The server files it a moment after it says that it is done.
    """
    for _ in range(100):
        async with http.get(f"{url}/history/{prompt}") as reply:
            history = await reply.json()
        if prompt in history:
            return dict(history[prompt]["outputs"])
        await asyncio.sleep(0.1)
    raise DevError("The workflow is done, but the server has no record of its outputs after 10 s.")


def first_image(outputs: Mapping[str, Any], workflow: Mapping[str, Any]) -> dict[str, str]:
    """The picture to keep: a SaveImage's before any other."""
    ranked = sorted(outputs, key=lambda key: workflow.get(key, {}).get("class_type") != "SaveImage")
    for key in ranked:
        for image in outputs[key].get("images", []):
            return {name: image[name] for name in ("filename", "subfolder", "type")}
    raise DevError("The workflow put out no picture; it needs a SaveImage node.")


def photos_of(demo: Path, others: Path) -> list[Path]:
    """A demo's own pictures, or those in the folder `others`."""
    own = demo / "photos"
    found = (own if own.is_dir() else others).glob("*")
    return sorted(path for path in found if path.suffix in (".jpg", ".png"))


async def upload(http: Any, url: str, photo: Path) -> None:
    """Put a photo into the server's input folder, over one of the same name."""
    import aiohttp  # the host's

    form = aiohttp.FormData({"overwrite": "true"})
    form.add_field("image", photo.read_bytes(), filename=photo.name)
    async with http.post(f"{url}/upload/image", data=form) as reply:
        reply.raise_for_status()


async def download(http: Any, url: str, image: Mapping[str, str], save: Path) -> None:
    """Save one of the server's pictures."""
    async with http.get(f"{url}/view", params=image) as reply:
        reply.raise_for_status()
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_bytes(await reply.read())


def texts_of(output: Mapping[str, Any]) -> list[str]:
    """The lines of text that a node put out."""
    return [line for text in output.get("text", []) for line in text.splitlines()]


async def demo_client(url: str, workflow_file: Path, photos: Sequence[Path], save: Path) -> None:
    """Upload the photos, run the workflow, and show and save what comes back."""
    import aiohttp  # the host's

    workflow = json.loads(workflow_file.read_text(encoding="utf-8"))
    stages, client = Stages(titles_of(workflow)), uuid.uuid4().hex
    async with aiohttp.ClientSession() as http:
        for photo in photos:
            await upload(http, url, photo)
        async with http.ws_connect(f"{url}/ws?clientId={client}", max_msg_size=0) as socket_:
            await follow(socket_, prompt := await submit(http, url, workflow, client), stages)
        outputs = await outputs_of(http, url, prompt)
        await download(http, url, first_image(outputs, workflow), save)
    for key, output in outputs.items():
        if lines := texts_of(output):
            title = stages.titles.get(key, key)
            print(f"\n{title}:", *(f"  {line}" for line in lines), sep="\n")
    print(f"\nStages:\n{stages.table()}\n\nPicture: {save}", flush=True)
