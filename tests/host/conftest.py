"""Scenes, and the small model of the recorded cases. ComfyUI is not on the path yet when this file is read."""
from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def scene():
    """SDXL's layers, a tenth as wide."""
    from support.scene import Scene
    return Scene()


@pytest.fixture(scope="module")
def scene15():
    """SD1.5's layers, a tenth as wide."""
    from support.scene import Scene
    return Scene("sd15")


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
