"""Set up a ComfyUI for this node pack and use it: `python dev.py demo | test | serve | host`.

demo   draw one picture through a real ComfyUI server and save it as output/mm-diff-demo.png
test   run the tests with the host's Python, then part of them on a newer ComfyUI; further arguments
       go to pytest (then only the host runs them; with --newer only the newer ComfyUI)
serve  run the server with its web page; --with-tiny adds the test models, other arguments go to
       ComfyUI
host   only get the host ready, and print where it is
docs   build the documentation site into output/site, or into the folder that is named

The host is, in this order: the folder in COMFYUI_PATH, the ComfyUI that this pack lies in
(custom_nodes), or one that is set up in .host/ inside the pack. A ComfyUI of your own is never
changed: what is missing there goes to .host/. Its Python is taken from COMFYUI_PYTHON, from a
virtual environment in or beside it, or is the one that runs this file.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dev_parts.adopt import ensure_host
from dev_parts.aside import fetched_for_tests
from dev_parts.demo import run_demo
from dev_parts.frontend import NEWEST_FRONTEND, newest_frontend
from dev_parts.host import Host, Pack, find_pack, probe
from dev_parts.newer import TESTS, newer_env, newer_host
from dev_parts.process import DevError, call, say
from dev_parts.publishing import PUBLISHING, PUBLISHING_TOOLS, run_docs
from dev_parts.server import child_env, page_of, server_command

MOST_PROCESSES = 4  # each has a ComfyUI, and sometimes a server and a browser beside it
# not resolved: a link in custom_nodes must still look like one
HERE = Path(os.path.abspath(__file__))


def pytest_arguments(
    pack: Pack, rest: Sequence[str], unless_named: Sequence[str] = ("tests",)
) -> list[str]:
    """pytest's command line: `unless_named` in several processes, unless the person names files."""
    tests = pack.root / "tests"
    named = any(
        (pack.root / part.partition("::")[0]).exists() for part in rest if not part.startswith("-")
    )
    return [
        "-c",
        str(tests / "pytest.ini"),
        "--rootdir",
        str(tests),
        *([] if named else several_processes()),
        *rest,
        *([] if named else [str(pack.root / name) for name in unless_named]),
    ]


def several_processes() -> list[str]:
    """pytest-xdist's options: a process for each core, a file's tests in one of them."""
    processes = min(os.cpu_count() or 1, MOST_PROCESSES)
    return ["-n", str(processes), "--dist", "loadfile"] if processes > 1 else []


def run_test(pack: Pack, rest: Sequence[str]) -> int:
    """The README's second command; returns pytest's exit status."""
    only_newer, passed = "--newer" in rest, [part for part in rest if part != "--newer"]
    host = ensure_host(pack)
    if only_newer and not host.own:
        raise DevError(
            f"--newer sets up a newer ComfyUI in .host/, but this pack uses the one in "
            f"{host.comfyui}. Unset COMFYUI_PATH, or leave --newer out to test with that one."
        )
    newer = find_newer(pack, host, only_newer) if only_newer or (host.own and not passed) else None
    env = child_env(pack, host)
    if not env.get(NEWEST_FRONTEND):  # a person can name another one
        env[NEWEST_FRONTEND] = str(newest_frontend(pack, host))
    if not env.get(PUBLISHING_TOOLS):
        tools = fetched_for_tests(PUBLISHING, pack, host, "site and release are not tested")
        env[PUBLISHING_TOOLS] = str(tools)
    status = 0
    if not only_newer:
        say("Running the tests ...")
        status = run_pytest(pack, host, env, pytest_arguments(pack, passed))
    if newer is not None:
        say(f"Running {'the tests' if only_newer else 'part of them'} on a newer ComfyUI ...")
        env = newer_env(pack, {**child_env(pack, newer), NEWEST_FRONTEND: env[NEWEST_FRONTEND]})
        named = ("tests",) if only_newer else TESTS
        status = run_pytest(pack, newer, env, pytest_arguments(pack, passed, named)) or status
    return status


def run_pytest(pack: Pack, host: Host, env: dict[str, str], arguments: Sequence[str]) -> int:
    return call([str(host.python), "-m", "pytest", *arguments], cwd=pack.root, env=env)


def find_newer(pack: Pack, host: Host, asked: bool) -> Host | None:
    """The newer host, or None where it cannot be had and neither a person nor CI asked for it."""
    try:
        return newer_host(pack, host)
    except DevError as error:
        if asked or os.environ.get("CI"):
            raise
        say(f"A newer ComfyUI could not be set up, so nothing is tested on it: {error}")
        return None


def run_serve(pack: Pack, rest: Sequence[str]) -> int:
    """The server with its web page in the foreground, until it is stopped with Ctrl-C."""
    with_tiny, passed = "--with-tiny" in rest, [part for part in rest if part != "--with-tiny"]
    page_of(passed)
    host = ensure_host(pack)
    host = replace(host, device=probe(host)["device"]) if host.own else host
    port, address = page_of(passed)  # again: the set-up can have taken minutes
    say(f"Starting ComfyUI; its page will be at {address} (Ctrl-C ends it)")
    command = [*server_command(pack, host, port, with_tiny), *passed]
    return call(command, cwd=pack.work, env=child_env(pack, host))


def run_host(pack: Pack, rest: Sequence[str]) -> int:
    """Only the set-up, and where the host is."""
    host = ensure_host(pack)
    print(f"ComfyUI: {host.comfyui}\nPython:  {host.python}")
    return 0


COMMANDS: dict[str, Callable[[Pack, Sequence[str]], int]] = {
    "demo": run_demo,
    "test": run_test,
    "serve": run_serve,
    "host": run_host,
    "docs": run_docs,
}


def split_arguments(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command, and all that follows it untouched: it belongs to pytest, ComfyUI or the demo."""
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=sorted(COMMANDS))
    return parser.parse_args(argv[:1]).command, list(argv[1:])


# what the system refuses, and what a person can do about it
ADVICE = {
    errno.EACCES: "Give yourself the right to write there, or copy the pack to where you have it.",
    errno.ENOSPC: "The disk is full. Make room, then run this again: it goes on where it stopped.",
}
ADVICE |= {errno.EPERM: ADVICE[errno.EACCES], errno.EROFS: ADVICE[errno.EACCES]}
ADVICE |= {errno.EDQUOT: ADVICE[errno.ENOSPC]} if hasattr(errno, "EDQUOT") else {}


def refusal(error: OSError) -> str:
    """What the system said no to, in a sentence."""
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{where}{reason}. {ADVICE.get(error.errno or 0, '')}".strip()


def end_with_children() -> None:
    """Let the signals that end us pass through the code that ends our children first."""
    for name, status in (("SIGTERM", 143), ("SIGHUP", 129)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_, status=status: sys.exit(status))


def main(argv: Sequence[str]) -> int:
    """Run one command; problems a person can solve become a message and exit status 1."""
    end_with_children()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    command, rest = split_arguments(argv)
    try:
        return COMMANDS[command](find_pack(HERE, os.environ), rest)
    except DevError as error:
        print(f"dev.py {command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"dev.py {command}: {refusal(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(
            "dev.py needs Python 3.10 or newer; "
            f"this is {sys.version.split()[0]} ({sys.executable})."
        )
    sys.exit(main(sys.argv[1:]))
