"""What is typed wrong is named in one line, with the nearest that is right: over every option of every command."""

from __future__ import annotations

import shlex
from typing import Any, get_type_hints

import pytest
from command import one_line, programs

from tasks.command_line import ANSWERS, parse
from tasks.options import UserError, scalar

COMMANDS = [(program, name) for program, module in programs().items() for name in module.COMMANDS]
OPTIONS = [
    (program, name, spec, get_type_hints(programs()[program].COMMANDS[name].options)[spec.name])
    for program, name in COMMANDS
    for spec in programs()[program].COMMANDS[name].options.__dataclass_fields__.values()
]
every_command = pytest.mark.parametrize(("program", "name"), COMMANDS)


def read(program: str, *words: str) -> dict[str, Any]:
    return parse(program, programs()[program].COMMANDS, words)[1]


def refusal(program: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        read(program, *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_kinds_are_there():
    assert {"tasks.image_classification", "tasks.translation"} <= programs().keys()
    assert {bool, int, float, str} == {scalar(hint) for *_, hint in OPTIONS}


def test_an_option_typed_wrong_is_unknown_and_names_the_right_one():
    for program, name, spec, _ in OPTIONS:
        known = programs()[program].COMMANDS[name].options.__dataclass_fields__
        for wrong in (spec.name[:-1], spec.name + "s", spec.name + spec.name[-1], spec.name.title() + "_"):
            for form in {wrong, wrong.replace("_", "-")} if wrong not in known and len(wrong) > 2 else ():
                told = refusal(program, name, f"--{form}=1")
                assert f"--{form} is unknown, did you mean --" in told
                assert f"--{spec.name}" in told.partition("did you mean")[2], told
        assert refusal(program, name, f"-{spec.name}", "1") == f"-{spec.name} is unknown, did you mean --{spec.name}?"


def test_no_beginning_of_an_option_is_taken_for_it():
    program = "tasks.image_classification"
    assert refusal(program, "--epoch", "3") == "--epoch is unknown, did you mean --epochs?"
    assert refusal(program, "--w", "3") == "--w is unknown, did you mean --warmup or --weight_decay or --workers?"
    assert refusal(program, "predict", "--per_class") == "--per_class is an option of evaluate, not of predict"
    assert refusal(program, "--xyzzy").startswith("--xyzzy is unknown: python -m tasks.image_classification train --help")


def test_a_missing_value_is_named():
    for program, name, spec, hint in OPTIONS:
        if hint is not bool:
            for words in ([f"--{spec.name}"], [f"--{spec.name}", "--name", "x"], [f"--{spec.name}", "-x"]):
                assert refusal(program, name, *words).startswith(f"--{spec.name} needs a value")
    assert refusal("tasks.translation", "--level") == "--level needs a value (one of bpe, unigram, word, char)"
    assert refusal("tasks.translation", "--epochs", "--lr") == (
        "--epochs needs a value (a whole number, 1 or more), --lr stands in its place"
    )
    assert read("tasks.translation", "--name=-x") == {"name": "-x"}


def test_a_wrong_value_is_named_with_what_is_expected():
    for program, name, spec, hint in OPTIONS:
        if spec.metadata["choices"]:
            for choice in spec.metadata["choices"]:
                told = refusal(program, name, f"--{spec.name}={choice}x")
                assert told.endswith(f"got '{choice}x', did you mean {choice}?")
                assert ", ".join(spec.metadata["choices"]) in told
        elif scalar(hint) in (int, float):
            for wrong in ("", "x", "1.5.1"):
                told = refusal(program, name, f"--{spec.name}={wrong}")
                assert told.startswith(f"--{spec.name} must be a {'whole ' * (scalar(hint) is int)}number")
                assert told.endswith(f"got {wrong!r}")
            if scalar(hint) is int:
                assert f"--{spec.name} must be " in refusal(program, name, f"--{spec.name}", "9" * 400)
        elif hint is bool:
            for answer in ANSWERS:
                for words in ([f"--{spec.name}={answer}"], [f"--{spec.name}", answer], [f"--no-{spec.name}", answer]):
                    assert f"takes no value, got '{answer}'" in refusal(program, name, *words)


@every_command
def test_a_word_without_an_option_names_the_option_that_it_may_be_meant_for(program, name):
    command = programs()[program].COMMANDS[name]
    meant = command.bare.replace("{}", "'a word'")
    assert meant.partition(" ")[0].removeprefix("--") in command.options.__dataclass_fields__
    if command.first:  # whose words stand first
        assert read(program, name, "a word", "b") == read(program, "a word", "b") == {command.first: ["a word", "b"]}
        other = next(n for n, spec in command.options.__dataclass_fields__.items() if spec.metadata["choices"])
        value = command.options.__dataclass_fields__[other].metadata["choices"][0]
        assert refusal(program, f"--{other}={value}", "a word").startswith(f"'a word' stands without an option (--{other} takes ")
        return
    assert refusal(program, name, "a word") == f"'a word' stands without an option, did you mean {meant}?"
    given = next(option for option, spec in command.options.__dataclass_fields__.items() if not spec.metadata["many"])
    assert f"'b' stands without an option (--{given} takes " in refusal(program, name, *shlex.split(f"--{given}=a b"))
    for other in programs()[program].COMMANDS:
        assert refusal(program, name, other).startswith(f"'{other}' is a command and comes first")


def test_a_command_typed_wrong_names_the_right_one(capsys):
    for program, module in programs().items():
        if next(iter(module.COMMANDS.values())).first:  # any word may be one of its own
            continue
        for name in module.COMMANDS:
            told = refusal(program, name[1:] + name[0])
            assert told.startswith(f"'{name[1:] + name[0]}' is no command")
            assert ", ".join(module.COMMANDS) in told
        assert "is no command, did you mean train?" in one_line(capsys, module.main, "trian", "--epochs", "1")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--batch-size 7 --batch_size=8 --skip-bad --no-resume", dict(batch_size=8, skip_bad=True, resume=False)),
        ("--lr -1e-3 --name - --epochs 3", None),
        ("--name - --data a=b --data_root ''", dict(name="-", data="a=b", data_root="")),
        ("predict --image a -- b", None),
        ("predict --image a - -1 --all --no-skip_bad", dict(image=["a", "-", "-1"], all=True, skip_bad=False)),
        ("predict --image=a --image b c", dict(image=["b", "c"])),
    ],
)
def test_words_become_values(words, found):
    if found is None:
        assert refusal("tasks.image_classification", *shlex.split(words))
    else:
        assert read("tasks.image_classification", *shlex.split(words)) == found


@every_command
def test_all_that_is_typed_wrong_is_one_line_and_exit_code_2(program, name, capsys):
    for wrong in (["--nam=x"], ["x y"], ["--name"], ["--nam\ne"], ["-"], ["--"], ["\udcff"], ["--na\udcffme", "1"]):
        one_line(capsys, programs()[program].main, name, *wrong)
