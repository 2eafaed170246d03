"""ComfyUI's own validation and execution of prompts in this process, without a server."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from support.faces import THREE, picture
from support.graphs import node
from support.onnx_stand_ins import write_model_pack
from support.paths import PACK, TESTS

STAND_IN = "stand_in.safetensors"  # name of a file in a model folder; its content is not read
OWN_ERRORS = ("ValueError", "FileNotFoundError", "FileExistsError", "RuntimeError")


class Wildcard(str):
    """A type that connects to every other one, as packs with switches and variables have it."""

    def __ne__(self, other: object) -> bool:
        return False


class Given:
    """A node that gives out an object of the test: the value of a link."""

    values: dict[str, object] = {}
    RETURN_TYPES = (Wildcard("*"),)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"key": ("STRING", {})}}

    def give(self, key: str):
        return (self.values[key],)


class Sink:
    """A node that a prompt can end in."""

    RETURN_TYPES = ()
    FUNCTION = "take"
    CATEGORY = "tests"
    OUTPUT_NODE = True
    taken: list = []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (Wildcard("*"), {})}}

    def take(self, value):
        self.taken[:] = [value]
        return {}


class Refused(Exception):
    """ComfyUI did not run the prompt, or a node failed. `own`: told by the pack or by ComfyUI's
    checks, in a sentence; otherwise something crashed."""

    def __init__(self, text: str, own: bool):
        super().__init__(text)
        self.own = own


def load_pack():
    """The pack's package of nodes, as ComfyUI loads it."""
    name = "mm_diff_pack"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        importlib.import_module(f"{name}.mmdiff_core.host.files").register_folders()
    return importlib.import_module(f"{name}.nodes")


class Host:
    """ComfyUI with the pack, its model folders below `home`, and a cache between the prompts."""

    def __init__(self, home: Path, monkeypatch):
        import execution
        import folder_paths
        import nodes as host_nodes

        self.execution, self.numbers = execution, itertools.count()
        self.subjects, self.checkpoints = home / "mmdiff_subjects", home / "mmdiff"
        self.classes = {c.GET_SCHEMA().node_id: c for c in load_pack().NODES}
        for name, made in {**self.classes, "Given": Given, "Sink": Sink}.items():
            monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, name, made)
        write_model_pack(home / "insightface", "discs", detector="coloured_discs")
        for name, folders in self._folders(home).items():
            for folder in folders:
                folder.mkdir(exist_ok=True)
                if name in ("checkpoints", "clip_vision"):
                    (folder / STAND_IN).touch()
            entry = ([str(folder) for folder in folders], {".safetensors"})
            monkeypatch.setitem(folder_paths.folder_names_and_paths, name, entry)
        _load_small_world(monkeypatch)
        for name in ("temp", "output"):
            monkeypatch.setattr(folder_paths, f"{name}_directory", str(home / name))
        server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
        cache = {"lru": 0, "ram": 0, "ram_inactive": 0}  # newer ComfyUI asks for the last one
        self.executor = execution.PromptExecutor(server, cache_args=cache)
        photo = torch.from_numpy(picture(*THREE)).float()[None] / 255
        self.constants = {
            "photo": self.give(photo),
            "white": self.give(torch.ones(1, 64, 64)),
            "box": self.give({"x": 8, "y": 8, "width": 64, "height": 64}),
        }

    def _folders(self, home: Path) -> dict[str, list[Path]]:
        return {
            "mmdiff": [self.checkpoints, TESTS / "tiny/models/mmdiff"],
            "mmdiff_subjects": [self.subjects],
            "insightface": [home / "insightface"],
            "checkpoints": [home / "checkpoints"],
            "clip_vision": [home / "clip_vision"],
        }

    def run(self, prompt: dict, client: str | None = None) -> dict:
        """What the nodes of an API graph showed. Refused where it does not run to its end."""
        number = str(next(self.numbers))
        valid = asyncio.run(self.execution.validate_prompt(number, prompt, None))
        if not valid[0] or valid[3]:
            raise _refused(valid)
        self.executor.execute(prompt, number, {"client_id": client}, valid[2])
        for kind, message in self.executor.status_messages:
            if kind == "execution_error":
                raise _failed(message)
        return self.executor.history_result["outputs"]

    def give(self, value: object) -> dict:
        """A node whose output is `value`."""
        key = f"value {next(self.numbers)}"
        Given.values[key] = value
        return node("Given", key=key)


def _load_small_world(monkeypatch) -> None:
    """Whatever checkpoint or image encoder is loaded: the small world's."""
    import comfy.clip_vision
    import comfy.sd

    world = importlib.import_module("mm_diff_pack.mmdiff_core.host.small_world")

    def load_base(path, **options):
        base = world.load()
        return base.model, base.clip, base.vae, None

    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", load_base)
    monkeypatch.setattr(comfy.clip_vision, "load", lambda path: world.load().clip_vision)


def _refused(valid: tuple) -> Refused:
    errors = [error for found in valid[3].values() for error in found["errors"]]
    errors = errors or [valid[1]]
    own = not any(error["type"].startswith("exception") for error in errors)
    return Refused("; ".join(f"{e['message']}: {e['details']}" for e in errors), own)


def _failed(message: dict) -> Refused:
    kind, last = message["exception_type"], message["traceback"][-1]
    own = kind.split(".")[-1] in OWN_ERRORS or kind.endswith(("FileError", "CheckpointError"))
    own = own and str(PACK) in last and "raise " in last
    return Refused(f"{kind}: {message['exception_message']}\n{last}", own)
