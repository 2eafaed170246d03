"""The pack's page, in a real Chromium on a real server, with a real mouse and keyboard, in both of
ComfyUI's ways to draw nodes, with the frontend that the host's ComfyUI pins and with the newest
one (python dev.py test fetches it and names its folder in MMDIFF_NEWEST_FRONTEND).

Needs Chromium on the machine (MMDIFF_TEST_BROWSER names another one) and the package playwright.
Without them the tests are skipped, but where CI is set they fail: there both belong.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.page import (
    FLAGS,
    NEWEST,
    SIZE,
    Editor,
    browser,
    change_settings,
    lacking,
    lacking_newest,
    open_page,
    open_without_a_graph,
)
from support.page_graphs import BUILD
from support.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVERY_PAGE = "on_every_page"
RENDERERS = ("litegraph", "nodes 2.0")
# The oldest frontend's Nodes 2.0 is an experiment: there run the tests of what each file is about.
# All others run with both frontends and in both ways to draw nodes, but not with this pair.
DRAFT = ("nodes 2.0", "the host's frontend")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from comfyui_version import __version__

    if tuple(map(int, __version__.split(".")[:2])) >= (0, 30):
        return  # it is none any more

    def is_left_out(item: pytest.Item) -> bool:
        chosen = getattr(item, "callspec", None)
        pages = [chosen.params.get(name) for name in ("loaded", "page_server")] if chosen else []
        return tuple(pages) == DRAFT and not item.get_closest_marker(EVERY_PAGE)

    left_out = [item for item in items if is_left_out(item)]
    items[:] = [item for item in items if not is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)


# of this folder, since other tests cannot run an event loop while playwright runs its own
@pytest.fixture(scope="package")
def chromium():
    if why := lacking():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser(), args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def newest_frontend_server(tmp_path_factory):
    """A server with the newest frontend that there is."""
    if why := lacking_newest():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    started = Server(
        tmp_path_factory.mktemp("server_newest_frontend"), "--front-end-root", os.environ[NEWEST]
    )
    yield started
    started.stop()


@pytest.fixture(scope="package", params=["the host's frontend", "the newest frontend"])
def page_server(request):
    """The server of all tests, with the frontend that its ComfyUI pins, and one with the newest."""
    pinned = request.param == "the host's frontend"
    return request.getfixturevalue("server" if pinned else "newest_frontend_server")


@contextmanager
def opened(chromium, server, renderer: str, shots: Path) -> Iterator[Page]:
    """A new page of ComfyUI; `errors` are its own and those of our extensions."""
    change_settings(server, {"Comfy.VueNodes.Enabled": renderer == "nodes 2.0"})
    page = chromium.new_page(viewport=SIZE)
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # an extension of ours failed
    page.on(
        "console",
        lambda said: said.type == "error" and "mmdiff." in said.text and errors.append(said.text),
    )
    open_page(page, server)
    page.shots = shots / renderer.replace(" ", "_")
    page.errors = errors
    page.failed = False
    yield page
    page.close()


@pytest.fixture(scope="package", params=RENDERERS)
def loaded(request, chromium, page_server, tmp_path_factory):
    """A page of ComfyUI, once for each way to draw nodes: the page itself is what takes longest to
    start, so all files share it."""
    with opened(chromium, page_server, request.param, tmp_path_factory.mktemp("shots")) as page:
        yield page


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport]:
    report = yield
    if report.failed and (page := getattr(item, "funcargs", {}).get("loaded")):
        page.failed = True
    return report


@pytest.fixture(autouse=True)
def nothing_of_a_failed_test_is_left(request):
    """A test that failed can leave a dialog over the page that the next ones share."""
    if "loaded" in request.fixturenames and (page := request.getfixturevalue("loaded")).failed:
        open_without_a_graph(page, request.getfixturevalue("page_server"))
        page.failed = False


@pytest.fixture
def page(loaded):
    loaded.evaluate(BUILD)
    loaded.locator(".mmdiff-boxes .stage").first.wait_for()
    loaded.wait_for_function("document.querySelectorAll('.mmdiff-boxes').length === 1")
    loaded.wait_for_timeout(300)  # nodes settle where they were put
    loaded.errors.clear()
    yield loaded
    assert loaded.errors == []


@pytest.fixture
def editor(page) -> Editor:
    return Editor(page)
