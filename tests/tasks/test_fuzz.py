"""Whatever is typed, and whatever lies in a file: it works, or ends with one line and exit code 2, and nothing is lost."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from command import contents, small
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import commands, generation_task, image_classification, image_generation, text_classification, translation
from tasks.engine import Run

PROGRAMS = {"image": image_classification, "text": translation, "label": text_classification, "make": image_generation}
COMMANDS = [(program, name) for program, module in PROGRAMS.items() for name in module.COMMANDS]
NASTY = {
    int: ["-1", "0", "1", "7", "1000000000000", str(2**63 - 1), "9" * 400, "1.5", "x", ""],
    float: ["-1", "0", "0.5", "1e300", "nan", "inf", "-inf", "x", ""],
    str: [
        "",
        " ",
        "-",
        "nowhere",
        "/",
        ".",
        "~",
        "no/such/folder",
        "x\ny",
        "🙂",
        "\udcff",
        "%s",
        "folder:",
        "hf:",
        "a:b#c",
        "é" * 300,
    ],
    bool: ["", "yes"],
}
STRANGE = ["", "-", "--", "---", "-x", "--=", "-1", "nan", "x y", "yes", "train", "--\udcff", "--x\ny=1", "--help=1"]
"""Words where an option is expected."""


fewer = settings(max_examples=max(1, settings().max_examples // 2))
"""Where an example is a whole command, of each of twenty commands."""


class Accepted(Exception):
    """A training would begin."""


@pytest.fixture(scope="module")
def here(pictures, tmp_path_factory) -> Path:
    """Classifiers of pictures and texts, a translator and a generator, trained for an epoch, their data, and a file of lines."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(pictures, folder / "pictures")
    (folder / "corpus").mkdir()
    for split in ("train", "valid", "test"):
        for language, words in (("de", "eins\nzwei\ndrei\n"), ("en", "one\ntwo\nthree\n")):
            (folder / "corpus" / f"{split}.{language}").write_text(words)
    (folder / "lines").write_text("eins\n\nzwei drei\n")
    (folder / "labelled.csv").write_text(
        "text,label\n" + "".join(f"{w},{n}\n" for n in "abc" for w in ("eins", "zwei", "drei", "vier"))
    )
    with contextlib.redirect_stdout(io.StringIO()):
        assert image_classification.main([*small(folder / "pictures", folder / "runs", "image"), "--epochs=1"]) == 0
        judge = [*plain(folder, "image", "train"), "--image_size=8", "--epochs=1", "--name=judge-pictures-8"]
        assert image_classification.main(judge) == 0
        for program in ("text", "label", "make"):
            assert PROGRAMS[program].main([*plain(folder, program, "train"), "--name", program, "--epochs", "1"]) == 0
    return folder


def plain(here: Path, program: str, command: str) -> list[str]:
    """Words with which the command works; more may follow, and count for more."""
    runs = ["--runs_dir", str(here / "runs")]
    words = {
        ("image", "train"): [f"--data=folder:{here / 'pictures'}", "--image_size=32", "--model=resnet20", "--device=cpu", *runs],
        ("text", "train"): [
            f"--dataset_path={here / 'corpus'}",
            "--source=de",
            "--target=en",
            "--max_length=20",
            "--batch_tokens=40",
            "--device=cpu",
            *runs,
        ],
        ("make", "train"): [
            f"--data=folder:{here / 'pictures'}",
            "--image_size=8",
            "--model=dcgan",
            "--passes=1",
            "--batch_size=8",
            "--device=cpu",
            *runs,
        ],
        ("make", "sample"): ["--name=make", *runs, "--count=2", f"--out={here / 'out.png'}"],
        ("make", "inpaint"): ["--name=make", *runs, f"--out={here / 'out.png'}"],
        ("label", "train"): [f"--train={here / 'labelled.csv'}", "--context=16", "--dim=4", "--device=cpu", *runs],
        ("label", "predict"): ["--name=label", *runs, f"--input={here / 'lines'}"],
        ("image", "predict"): ["--name=image", *runs, f"--image={here / 'pictures' / 'test' / 'dark' / '00.png'}"],
        ("image", "export"): ["--name=image", *runs, f"--out={here / 'out.safetensors'}"],
        ("text", "export"): ["--name=text", *runs, f"--out={here / 'theirs'}"],
        ("text", "prepare"): [f"--dataset_path={here / 'corpus'}", "--source=de", "--target=en", f"--out={here / 'prepared'}"],
        ("text", "translate"): ["--name=text", *runs, "--max_length=8", f"--input={here / 'lines'}"],
        ("text", "evaluate"): ["--name=text", *runs, "--max_length=8"],
    }
    return [command, *words.get((program, command), [f"--name={program}", *runs])]


def small_reader(data: Path) -> list[str]:
    sizes = ["--dim=16", "--layers=1", "--vocab_size=270", "--context=16", "--batch_tokens=64", "--device=cpu", "--tracker=none"]
    return [f"--train={data}", f"--valid={data}", *sizes]


def ends_well(program: str, words: list[str], here: Path, capsys: Any) -> int | None:
    """The exit code, None where a training would have begun. What was there before is there after, but in a run that goes on."""
    before = contents(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(Run, "fit", accepted)
        patch.setattr(generation_task.ImageGeneration, "keep", lambda task, folder: None)  # trains a judge, in another process
        try:
            code = PROGRAMS[program].main(words)
        except Accepted:
            code = None
    said = capsys.readouterr()
    assert code in (None, 0, 2), said.err
    if code == 2:
        *before_it, line = said.err.splitlines()
        assert line.startswith("error: "), said.err
        assert not any("error: " in other or "usage: " in other for other in before_it), said.err
        assert "Traceback" not in said.err
        assert contents(here) == before, f"refused by {line!r}, but something is left behind"
    after = contents(here)
    kept = {
        path: content
        for path, content in before.items()
        if code is not None or "--resume" not in words or here / "runs" not in path.parents
    }
    assert {path: after.get(path) for path in kept} == kept, "what was there has changed"
    for path in sorted(after.keys() - before.keys(), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    for path, content in before.items():
        if content is not None:
            path.write_bytes(content)
    return code


def accepted(run: Run) -> None:
    raise Accepted


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_the_words_to_begin_with_are_right(here, capsys, program, command):
    refused = (program, command) in (("text", "export"), ("make", "inpaint"))  # no Marian; no diffusion
    assert ends_well(program, plain(here, program, command), here, capsys) in ((2,) if refused else (None, 0))


@fewer
@given(st.data())
@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_whatever_is_typed(here, program, command, data):
    """One or two options of every command, each with a value that it may not expect."""
    options = PROGRAMS[program].COMMANDS[command].options
    hints, words = get_type_hints(options), plain(here, program, command)
    for name in data.draw(st.lists(st.sampled_from(sorted(options.__dataclass_fields__)), min_size=1, max_size=2, unique=True)):
        hint = hints[name]
        kind = str if hint == list[str] else next((t for t in (*get_args(hint), hint) if t in NASTY), str)
        choices = list(options.__dataclass_fields__[name].metadata["choices"])
        words.append(f"--{name}={data.draw(st.sampled_from([*NASTY[kind], *choices]))}")
    ends_well(program, words, here, Said())


@given(st.data())
@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_whatever_words_stand_there(program, command, data):
    """Options and values in any order, half of them wrong: a command begins, or one line says what is wrong."""
    module = PROGRAMS[program]
    known = sorted(module.COMMANDS[command].options.__dataclass_fields__)
    forms = st.sampled_from(["--{}", "--{}=1", "--no-{}", "-{}", "--{}s", "{}"]).flatmap(
        lambda form: st.sampled_from(known).map(form.format)
    )
    words = data.draw(st.lists(st.sampled_from(STRANGE) | forms, max_size=6))
    silent = {name: found._replace(call=lambda given: None) for name, found in module.COMMANDS.items()}
    said = Said()
    code = commands.main(program, silent, [command, *words])
    error = said.readouterr().err
    assert (code, error) == (0, "") or (code == 2 and error.startswith("error: ") and error.count("\n") == 1), error


FILES = ["config.json", "options.json", "best.safetensors", "last.safetensors", "tokenizer.json", "metrics.jsonl"]
DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "noise": lambda content: bytes(range(256)) * 8,
    "null": lambda content: b"null",
    "list": lambda content: b"[1, 2]",
    "object": lambda content: b"{}",
    "other values": lambda content: re.sub(rb'"[^"]*"(?=,|\s*})|\d+', b"null", content),
    "other types": lambda content: re.sub(rb": [^,{}]+(?=[,}])", b': [{"a": 1}]', content),
    "UTF-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "twice": lambda content: content + content,
    "a picture of nothing": lambda content: b"\x89PNG\r\n\x1a\n" + content[:40],
}


@fewer
@given(st.data())
@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_whatever_lies_in_a_file(here, program, command, data):
    """One file that the command may read is damaged; a run goes on too."""
    words = plain(here, program, command)
    if command == "train" and data.draw(st.booleans()):
        words = ["train", "--runs_dir", str(here / "runs"), "--name", program, "--resume", "--epochs", "2"]
    paths = [here / "runs" / program / name for name in FILES]
    paths += [
        here / "pictures" / "test" / "dark" / "00.png",
        here / "lines",
        here / "labelled.csv",
        here / "corpus" / "train.de",
        here / "corpus" / "test.en",
    ]
    path = data.draw(st.sampled_from([path for path in paths if path.exists()]))
    damage = data.draw(st.sampled_from(sorted(DAMAGES)))
    whole = path.read_bytes()
    try:
        path.write_bytes(DAMAGES[damage](whole))
        ends_well(program, words, here, Said())
    finally:
        path.write_bytes(whole)


class Said:
    """`capsys` for hypothesis, which draws many examples in one test."""

    def __init__(self) -> None:
        self.out, self.err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(contextlib.redirect_stdout(self.out))
        self.stack.enter_context(contextlib.redirect_stderr(self.err))

    def readouterr(self) -> Any:
        self.stack.close()
        texts = []
        for stream in (self.out, self.err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        return type("Said", (), dict(zip(("out", "err"), texts, strict=True)))
