"""Scenes, and the small model of the recorded cases.

ComfyUI is not on the path yet when this file is read.
"""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def scene15():
    from support.scene import Scene

    return Scene("sd15")


@pytest.fixture(scope="module")
def ann(scene) -> list:
    """The scene's text with its first subject."""
    return scene.bound(scene.subjects[:1])


@pytest.fixture(scope="module")
def bob(scene) -> list:
    """Another text and another subject."""
    return scene.another_prompt()


@pytest.fixture
def as_the_host_executes():
    """ComfyUI runs its nodes in inference mode."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def world(case):
    """The small model of the case's folder."""
    from support.recorded import load_world

    return load_world(case)


@pytest.fixture(scope="session")
def subjects(case, world):
    """The case's references, encoded."""
    from support.recorded import encode_subjects

    return encode_subjects(case, world)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """ComfyUI's own validation and execution, in this process, with a saved subject."""
    from support.every_node import prompt_with
    from support.in_process import Host

    with pytest.MonkeyPatch.context() as monkeypatch:
        started = Host(tmp_path_factory.mktemp("host"), monkeypatch)
        started.run(prompt_with(started, "MMDiffSaveSubject"))
        yield started
