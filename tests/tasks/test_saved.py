"""Which run a command takes: by name, by path, or the latest; one that another program made is said to be that one's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from command import one_line, programs

from tasks import saved
from tasks.options import EngineOptions
from zoo import files

IMAGES, TRANSLATION = "tasks.image_classification", "tasks.translation"


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory) -> Path:
    """What every program leaves, in RUNS/PROGRAM: the name of the one that made it, and the files that tell."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished[0], folder / IMAGES)
    for program in programs().keys() - {IMAGES}:
        shutil.copytree(finished[0], folder / program)
        files.write_json(folder / program / "options.json", {"about": {"program": program}})
    (folder / TRANSLATION / "tokenizer.json").touch()
    return folder


def commands_of(program: str) -> dict[str, Any]:
    """The commands that take a run, and the words that make them do so."""
    found = {}
    for name, command in programs()[program].COMMANDS.items():
        if "runs_dir" in command.options.__dataclass_fields__:
            found[name] = [name, "--resume"] if issubclass(command.options, EngineOptions) else [name]
    return found


KINDS = [
    (program, name, other)
    for program in programs()
    for name in commands_of(program)
    for other in programs()
    if commands_of(other)
]


def test_every_command_that_takes_runs_says_whose():
    assert len(programs()) > 1
    for program, module in programs().items():
        for name in commands_of(program):
            assert module.COMMANDS[name].options.program == program


@pytest.mark.parametrize(("program", "name", "other"), [kind for kind in KINDS if kind[0] != kind[2]])
def test_a_run_of_another_program_is_told_with_the_commands_that_take_it(runs, tmp_path, capsys, program, name, other):
    module, words = programs()[program], commands_of(program)[name]
    takes = module.COMMANDS[name].options.__dataclass_fields__
    given = {"image": __file__, "text": "a", "question": "b", "context": "c"} if name == "predict" else {}
    given |= {"out": tmp_path / "out.pth"} if name == "export" else {}
    needed = [word for option, value in given.items() if option in takes for word in (f"--{option}", value)]
    common = ["--runs_dir", runs, *needed]
    theirs = ", ".join(" ".join(taking) for taking in commands_of(other).values())
    ends = f"{runs / other} is a run of {other}, not of {program}; python -m {other} takes it: {theirs}\n"
    told = one_line(capsys, module.main, *words, *common, "--name", other)
    assert told == f"error: --name {other}: {ends}"
    if "init" in module.COMMANDS[name].options.__dataclass_fields__:
        for given in [runs / other, runs / other / "best.safetensors"] + [other] * ("--resume" in words):
            assert one_line(capsys, module.main, name, *common, "--init", given) == f"error: --init {given}: {ends}"


def test_a_run_of_an_older_version_is_known_by_its_files(finished, tmp_path):
    assert saved.program_of(finished[0]) == IMAGES
    shutil.copytree(finished[0], tmp_path / "a")
    (tmp_path / "a" / "options.json").write_text("{}")
    assert saved.program_of(tmp_path / "a") == IMAGES
    (tmp_path / "a" / "tokenizer.json").touch()
    assert saved.program_of(tmp_path / "a") == TRANSLATION
    for text in ("", "[", "null", '{"about": 1}', "[" * 100_000, '{"about": {"program": 3}}'):
        (tmp_path / "a" / "options.json").write_text(text)
        assert saved.program_of(tmp_path / "a") == TRANSLATION
    assert saved.program_of(tmp_path) == saved.program_of(tmp_path / "nothing") == ""


@pytest.mark.parametrize("made", ["tasks.gan", "os", "tasks.options", "tasks.", "; rm"])
def test_a_run_of_a_program_that_is_not_here_is_told_too(finished, tmp_path, capsys, made):
    shutil.copytree(finished[0], tmp_path / "a")
    files.write_json(tmp_path / "a" / "options.json", {"about": {"program": made}})
    told = one_line(capsys, programs()[IMAGES].main, "evaluate", "--runs_dir", tmp_path, "--name", "a")
    assert told.endswith(f"is a run of {made}, not of {IMAGES}\n")


def test_the_latest_run_is_one_of_the_program(runs, tmp_path):
    """Those of others are passed over, whenever they were trained."""
    for name in ("a", "b"):
        shutil.copytree(runs / IMAGES, tmp_path / name)
    files.write_json(tmp_path / "b" / "options.json", {"about": {"program": TRANSLATION}})
    for program, name in ((IMAGES, "a"), (TRANSLATION, "b")):
        options = saved.SavedOptions(runs_dir=str(tmp_path))
        options.program = program
        assert saved.find_run(options, "best.safetensors") == tmp_path / name
