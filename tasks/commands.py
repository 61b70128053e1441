"""From the command line to a command's function, and how it ends: done, something to mend (exit code 2), or diverged (1)."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from typing import Any, NamedTuple

from tasks.options import UserError, add


class Diverged(Exception):
    """The loss is no longer finite."""


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Storage size calculation overflowed", "DataLoader worker")
"""What torch says, in a `RuntimeError`, of tensors that are too large, and of workers that the system has stopped for that."""


class Command(NamedTuple):
    """One command of a program. `call` is given the options that were written, by name; `example` are some worth knowing."""

    options: type
    summary: str
    call: Callable[[dict[str, Any]], None]
    example: str = ""


def parse(program: str, commands: Mapping[str, Command], argv: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """The command (the first one if none is given) and the options that were given; `--batch-size` and `--batch_size` are one."""
    argv = [
        f"--{a[2:].partition('=')[0].replace('-', '_')}{''.join(a.partition('=')[1:])}" if a.startswith("--") else a for a in argv
    ]
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise UserError(f"{argv[0]!r} is no command: {', '.join(commands)}, each with its own --help")
    if not argv or argv[0] not in commands:
        argv = [next(iter(commands)), *argv]
    name, command = argv[0], commands[argv[0]]
    parser = argparse.ArgumentParser(
        usage=f"python -m {program} [{'|'.join(commands)}] [options]", description=f"{name}: {command.summary}",
        argument_default=argparse.SUPPRESS, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join([
            *(["for example:", f"  python -m {program} {name} {command.example}", ""] if command.example else []),
            "commands, each with its own --help:", *(f"  {name:<10} {c.summary}" for name, c in commands.items()),
        ]),
    )  # fmt: skip
    add(parser, command.options)
    return command, vars(parser.parse_args(argv[1:]))


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
    """Run a command: what the user can mend becomes one line and exit code 2, a diverged run one line and 1."""
    for stream in (sys.stdout, sys.stderr):  # text of any language, whatever the locale
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        command, given = parse(program, commands, sys.argv[1:] if argv is None else argv)
        command.call(given)
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
