"""The commands of `python -m mmdiff_core`, one module each.

A command's module has a docstring (its help; the first line is its summary), `add_arguments` and
`run`. At its top it imports the standard library and what imports no more than that. What is heavy,
it imports first thing in `run`: when the command was chosen, and after `use_comfyui` where ComfyUI
is needed. So the help of all commands is there at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from ..training.run.errors import RunError
from . import (
    ablations,
    annotate,
    convert,
    doctor,
    encode,
    evaluate,
    evaluate_protocol,
    experiments,
    finetune,
    gallery,
    picking,
    pretrain,
    reward,
    sheet,
    shrink,
    train,
)

PROGRAM = "python -m mmdiff_core"
COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "annotate": annotate,
    "encode": encode,
    "convert": convert,
    "shrink": shrink,
    "doctor": doctor,
    "evaluate": evaluate,
    "experiments": experiments,
    "sheet": sheet,
    "gallery": gallery,
    "picking": picking,
    "ablations": ablations,
    "finetune": finetune,
    "pretrain": pretrain,
    "reward": reward,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. An error that a person can put right is one line."""
    given = list(sys.argv[1:] if argv is None else argv)
    commands = _commands_for(given)
    args = _parser(commands).parse_args(given)
    try:
        return commands[args.command].run(args)
    except (ValueError, OSError, RunError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _commands_for(given: Sequence[str]) -> dict[str, ModuleType]:
    """The commands; `evaluate` has other arguments where a protocol's name follows it."""
    if given[:1] == ["evaluate"] and set(given[1:2]) & set(evaluate_protocol.NAMES):
        return {**COMMANDS, "evaluate": evaluate_protocol}
    return COMMANDS


class OneLineEach(argparse.HelpFormatter):
    """Every command's summary beside its name. argparse counts the indent of commands once, though
    they are indented twice, and puts what follows a long name below it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = max(map(len, COMMANDS)) + 2 * self._indent_increment


def _parser(commands: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="MM-Diff for ComfyUI: its commands.",
        formatter_class=OneLineEach,
    )
    chosen = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in commands.items():
        summary = module.__doc__.partition("\n")[0]
        own = chosen.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(own)
    return parser
