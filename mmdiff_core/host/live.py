"""Shows a recording in the web page while the sampler still runs: at most twice a second, and only
where a person asked for it."""

from __future__ import annotations

import base64
import io
import sys
import time
from collections.abc import Callable

import torch
from PIL import Image

from ..regions.map_images import stretch, strip
from .watch import Recording

EVENT = "mmdiff.maps"
EVERY = 0.5  # seconds between two pictures: each one reads the maps back from the device


def live_view(
    node: str, send: Callable[[str, dict], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[Recording, int, int], None]:
    """What `Recorder` calls after every step: sends the newest maps of the first picture to the
    page, throttled."""
    last = -float("inf")

    def show(recording: Recording, step: int, steps: int) -> None:
        nonlocal last
        if clock() - last < EVERY and step < steps:
            return
        last = clock()
        found = recording.result()
        if found:
            newest = torch.cat([maps.of("both")[-1:, 0] for maps in found], 1)  # 1 S h w
            names = [name for maps in found for name in maps.names]
            send(
                EVENT,
                {
                    "node": node,
                    "step": step,
                    "steps": steps,
                    "names": names,
                    "image": data_url(strip(stretch(newest))),
                },
            )

    return show


def data_url(picture: torch.Tensor) -> str:
    """IMAGE [1 H W 3] in 0..1 -> a PNG as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray((picture[0] * 255).round().byte().numpy()).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def page() -> Callable[[str, dict], None]:
    """How to reach the page that asked for the run that is on. RuntimeError without a server."""
    server = running_server()
    if server is None:
        raise RuntimeError(
            "live maps need a running ComfyUI server; turn live off to run without one"
        )

    def send(event: str, data: dict) -> None:
        # read now: a cached node serves the runs of other clients as well
        if server.client_id is not None:
            server.send_sync(event, data, server.client_id)

    return send


def running_server():
    """ComfyUI's server of this process, or None."""
    # a running server has imported its module; importing it here would start half of one
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
