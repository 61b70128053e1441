"""From the words that were typed to options; what is typed wrong is named, in one line, with the nearest that is right."""

from __future__ import annotations

import argparse
import shlex
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from tasks.options import UserError, did_you_mean, expected, owner, read_value, require_valid, scalar

if TYPE_CHECKING:
    from tasks.commands import Command


def parse(program: str, commands: Mapping[str, Command], argv: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """The command (the first one if none is given) and the options that were given; `--batch-size` and `--batch_size` are one.

    Errors: `UserError` for what is no command, no option or no value, and for a value out of its range.
    """
    name, words = next(iter(commands)), [*argv]
    if words and not words[0].startswith("-") and (words[0] in commands or not commands[name].first):
        name, *words = words
    if name not in commands:
        there = f"there are {', '.join(commands)}, each with its own --help"
        raise UserError(f"{name!r} is no command{did_you_mean(name, commands)}; {there}")
    if {"-h", "--help"}.intersection(words):
        helper(program, commands, name).print_help()
        raise SystemExit
    if commands[name].first and words and not is_option(words[0]):
        words = [f"--{commands[name].first}", *words]
    return commands[name], Words(program, commands, name, words).read()


ANSWERS = ("yes", "no", "true", "false", "on", "off", "1", "0")
"""What other programs take as the value of what is on or off."""


class Words:
    """The words behind a command, which are taken one by one."""

    def __init__(self, program: str, commands: Mapping[str, Command], name: str, words: Sequence[str]) -> None:
        self.program, self.commands, self.name, self.words = program, commands, name, deque(words)
        kind = commands[name].options
        self.hints, self.specs = get_type_hints(kind), specs_of(kind)
        self.off = {f"no_{option}": option for option, hint in self.hints.items() if hint is bool}

    def read(self) -> dict[str, Any]:
        """Values by option; of an option that was given twice, the last one counts."""
        given: dict[str, Any] = {}
        last = ""
        while self.words:
            word = self.words.popleft()
            if not is_option(word):
                raise self.stray(word, last)
            written, equals, value = word.partition("=")
            option = spelt(written)
            if not written.startswith("--") or option not in {**self.specs, **self.off}:
                raise self.unknown(written)
            last = self.off.get(option, option)
            values = [value] if equals else None
            given[last] = self.turned(written, values) if self.hints[last] is bool else self.value(last, values)
            require_valid(self.specs[last], self.hints[last], given[last])
        return given

    def turned(self, written: str, values: Sequence[str] | None) -> bool:
        """On or off, which has no value."""
        option = spelt(written)
        if values or (self.words and self.words[0].lower() in ANSWERS):
            opposite = f"--{self.off[option]}" if option in self.off else f"--no-{option}"
            value = values[0] if values else self.words[0]
            raise UserError(f"{written} takes no value, got {value!r}: leave it out, or write {opposite} for the opposite")
        return option not in self.off

    def value(self, option: str, values: Sequence[str] | None) -> Any:
        """What stands behind the option's =, if anything does, else the words that follow: one, or all of those that are many."""
        spec, hint = self.specs[option], self.hints[option]
        if values is None:
            values = []
            while self.words and not is_option(self.words[0]) and (spec.metadata["many"] or not values):
                values.append(self.words.popleft())
        if not values:
            wanted, word = expected(spec, hint), self.words[0] if self.words else ""
            meant = not wanted and spelt(word) not in self.specs
            instead = f", {word} stands in its place" + (f": write --{option}={word} if that is one" if meant else "")
            raise UserError(f"--{option} needs a value{wanted and f' ({wanted})'}{instead if word else ''}")
        return list(values) if spec.metadata["many"] else read_value(spec, hint, values[0])

    def stray(self, word: str, last: str) -> UserError:
        if word in self.commands:
            return UserError(f"{word!r} is a command and comes first: python -m {self.program} {word} --...")
        takes = "no" if last and self.hints[last] is bool else "one"
        why = f" (--{last} takes {takes} value)" if last else ""
        meant = self.commands[self.name].bare.replace("{}", shlex.quote(word))
        suits = meant and not (last and scalar(self.hints[last]) in (int, float))
        return UserError(f"{word!r} stands without an option{why}" + (f", did you mean {meant}?" if suits else ""))

    def unknown(self, written: str) -> UserError:
        option, known = spelt(written), [*self.specs, *self.off]
        others = [name for name, command in self.commands.items() if option in specs_of(command.options)]
        if others and written.startswith("--"):
            return UserError(f"{written} is an option of {' and '.join(others)}, not of {self.name}")
        beginning = [f"--{name}" for name in known if option and name.startswith(option)]
        beginning = [f"--{option}"] if option in known else beginning[:3]
        near = f", did you mean {' or '.join(beginning)}?" if beginning else did_you_mean(option, known, "--")
        there = f": python -m {self.program} {self.name} --help lists what there is"
        return UserError(f"{written} is unknown{near or there}")


def is_option(word: str) -> bool:
    """Not "-", which is standard input, and no negative number."""
    if not word.startswith("-") or word == "-":
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def spelt(written: str) -> str:
    return written.lstrip("-").replace("-", "_")


def specs_of(kind: Any) -> dict[str, Field[Any]]:
    return {spec.name: spec for spec in fields(kind)}


def helper(program: str, commands: Mapping[str, Command], name: str) -> argparse.ArgumentParser:
    """What writes the help of a command: its options in the groups that they came with, and what else there is."""
    command = commands[name]
    first = f"{command.first.upper()} ..." if command.first else f"[{'|'.join(commands)}]"
    parser = argparse.ArgumentParser(
        usage=f"python -m {program} {first} [options]", description=f"{name}: {command.summary}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join([
            *(["for example:", f"  python -m {program} {name} {command.example}", ""] if command.example else []),
            "commands, each with its own --help:", *(f"  {name:<10} {c.summary}" for name, c in commands.items()),
        ]),
    )  # fmt: skip
    kind, hints, groups = command.options, get_type_hints(command.options), {}
    for option, spec in sorted(specs_of(kind).items(), key=lambda item: kind.__mro__.index(owner(kind, item[0]))):
        title = owner(kind, option).title
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        add(groups[title], spec, hints[option])
    return parser


def add(group: Any, spec: Field[Any], hint: Any) -> None:
    rules, default = spec.metadata, None if spec.default is MISSING else spec.default
    text = rules["help"].replace("%", "%%")
    if hint is bool:
        group.add_argument(f"--{spec.name}", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    text += "" if default in (None, "") else f" (default: {default})"
    shape: dict[str, Any] = {"choices": rules["choices"]} if rules["choices"] else {"metavar": scalar(hint).__name__.upper()}
    group.add_argument(f"--{spec.name}", help=text, nargs="+" if rules["many"] else None, **shape)
