"""From the command line to a command's function, and how it ends: done, something to mend (exit code 2), or diverged (1)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from typing import Any, NamedTuple

from tasks.command_line import parse
from tasks.options import UserError


class Diverged(Exception):
    """The loss is no longer finite."""


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Storage size calculation overflowed", "DataLoader worker")
"""What torch says, in a `RuntimeError`, of tensors that are too large, and of workers that the system has stopped for that."""


class Command(NamedTuple):
    """One command of a program.

    call:    is given the options that were written, by name. example: some that are worth knowing.
    bare:    the option that a word without one was likely meant for, such as "--image {}".
    first:   the option whose values stand first, without its name.
    """

    options: type
    summary: str
    call: Callable[[dict[str, Any]], None]
    example: str = ""
    bare: str = ""
    first: str = ""


@contextlib.contextmanager
def checking_input() -> Iterator[None]:
    """While options, data and checkpoints are read, a `ValueError` is about them, not a fault of the program."""
    try:
        yield
    except (ValueError, UserError, OSError) as error:
        found = UserError(str(error)) if isinstance(error, ValueError) else error
        found.of_all = True  # type: ignore  # processes of torchrun: the first one says it
        raise found from error


def first_process() -> bool:
    """True outside torchrun, and in the process that reports and writes files."""
    return os.environ.get("RANK", "0") == "0"


def main(program: str, commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Run a command, whose exit code is that of `exit_code`."""

    def call() -> None:
        with checking_input():
            command, given = parse(program, commands, sys.argv[1:] if argv is None else argv)
        command.call(given)

    return exit_code(call)


def exit_code(call: Callable[[], None]) -> int:
    """The exit code, 0 or: for what the user can mend one line and 2, for a diverged run one line and 1."""
    for stream in (sys.stdout, sys.stderr):  # text of any language, whatever the locale
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        call()
        sys.stdout.flush()
    except BrokenPipeError:  # such as ``| head``, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (Diverged, UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        if first_process() or not getattr(error, "of_all", False):
            print("error: " + (" ".join(str(error).split()) or "out of memory"), file=sys.stderr)
        return 1 if isinstance(error, Diverged) else 2
    except KeyboardInterrupt as stop:
        if first_process():
            print(str(stop) or "stopped", file=sys.stderr)
        return 130
    return 0
