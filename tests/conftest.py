"""Shared set-up: ComfyUI on the path (COMFYUI_PATH), CPU mode where there is no GPU, the small
model, the reference folder.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# the tests' matrices are tiny: on a busy machine threads wait for each other, ten times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).resolve().parent
PACK = TESTS.parent


def _use_host(imported: bool) -> None:
    host = os.environ.get("COMFYUI_PATH")
    if not host or not (Path(host) / "comfy").is_dir():
        raise pytest.UsageError(
            f"COMFYUI_PATH is {host!r}: no ComfyUI there. Run the tests with: python dev.py test"
        )
    if not imported:
        return
    sys.path.insert(0, host)
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available() or bool(os.environ.get("MMDIFF_TEST_CPU"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference",
        default=None,
        help="folder with case_*.json/.safetensors in the recorded format",
    )
    parser.addoption(
        "--mutations",
        type=int,
        default=60,
        help="damages that the tests of damaged files make of each kind of file",
    )


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    """Half of a surrogate pair in captured output or in a failure ends no run: the processes of
    pytest-xdist cannot send it to one another."""
    report = (yield).get_result()
    report.sections = [(name, sendable(text)) for name, text in report.sections]
    if report.longrepr is not None and sendable(str(report.longrepr)) != str(report.longrepr):
        report.longrepr = sendable(str(report.longrepr))


def sendable(text: str) -> str:
    """The text with escapes for what UTF-8 cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shares_out(config: pytest.Config) -> bool:
    """Whether this process only hands the tests to those of pytest-xdist."""
    return config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    _use_host(imported=not shares_out(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from support.schedule import Scheduling

    config.option.loadscopereorder = False  # the items are in order
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from support.schedule import longest_first

        longest_first(items)


NEWER = (0, 30)  # all that the tests in folders called "newer" use is in this version


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Tests of what only newer ComfyUI has are not collected on another one."""
    if "newer" not in collection_path.relative_to(TESTS).parts:
        return None
    from comfyui_version import __version__

    return True if tuple(map(int, __version__.split(".")[:2])) < NEWER else None


def reference_folder(config: pytest.Config) -> Path:
    return Path(config.getoption("--reference") or TESTS / "reference").resolve()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        from support.cases import find_cases

        names = find_cases(reference_folder(metafunc.config))
        metafunc.parametrize(
            "case", names, indirect=True, ids=[p.stem for p in names], scope="session"
        )


@pytest.fixture(scope="module", autouse=True)
def nothing_of_other_files_to_look_through():
    """What is there before a file's tests is left out of garbage collections. ComfyUI makes one
    with every model that it loads while one model's clone is gone, and to look through all objects
    of the process takes up to a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def mutations(request: pytest.FixtureRequest) -> int:
    """How many times a kind of file is damaged."""
    return request.config.getoption("--mutations")


@pytest.fixture
def tally(request: pytest.FixtureRequest):
    """Counts that fail the test at its end, with the first of each bad outcome."""
    from support.mutations import Tally

    made = Tally(request.node.name)
    yield made
    print(made)
    assert made.failures == 0, f"{made}; {made.worst}"


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest):
    """SDXL's layers, or those that the test's file names in LIKE, a tenth as wide."""
    from support.scene import Scene

    return Scene(getattr(request.module, "LIKE", "sdxl"))


@pytest.fixture(scope="module")
def model(scene):
    """The scene's model with the adapter applied."""
    from mmdiff_core.host.apply import apply

    from support.scene import BOTH

    return apply(scene.model, scene.adapter, BOTH)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    from support.server import Server

    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest):
    from support.cases import Case

    return Case(request.param)


@pytest.fixture(scope="session")
def face_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-ins for the face models."""
    from support.onnx_stand_ins import write_model_pack

    folder = tmp_path_factory.mktemp("insightface")
    write_model_pack(folder)
    return folder


@pytest.fixture(scope="module")
def analyser(face_models: Path):
    from mmdiff_core.references import faces

    return faces.load_analyser(face_models, "stand_in", "cpu")
