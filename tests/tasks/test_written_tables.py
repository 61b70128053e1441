"""Tables that commands write: what a reader finds in them, what comes when, and what cannot be written."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.options import UserError
from tasks.tables import FORMATS, encoder, format_of, require_table, require_writable, writing

ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\t", "\0", '"', "\\", ",", "\udcff"]
WILD = st.lists(st.one_of(st.text(max_size=4), st.sampled_from(ENDS)), max_size=6).map("".join)
VALUES = st.one_of(WILD, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))


def written(rows, form, **widths) -> str:
    return "".join(map(encoder(form, widths), rows))


def read(text: str, form: str) -> list[list[str]]:
    """What a reader that knows the form finds."""
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if form == "tsv" else {}
    return list(csv.reader(io.StringIO(text, newline=""), strict=True, **options))


@given(st.lists(st.fixed_dictionaries({"a": VALUES, "b\t\n": WILD, "c": st.lists(WILD, max_size=2)}), min_size=1, max_size=4))
def test_a_row_is_a_row_to_every_reader(rows):
    """JSON lines hold all of it, CSV all text; TSV has a space for each tab and line break."""
    lines = written(rows, "jsonl").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert "".join(line + "\n" for line in lines) == written(rows, "jsonl")
    flat = [["" if row["a"] is None else str(row["a"]), row["b\t\n"], json.dumps(row["c"], ensure_ascii=False)] for row in rows]
    order = [{name: row[name] for name in ("a", "b\t\n", "c")} for row in rows[:1]]  # of the first row, which hypothesis changes
    rows = order + rows[1:]
    assert read(written(rows, "csv"), "csv") == [["a", "b\t\n", "c"], *flat]
    lines = written(rows, "tsv").splitlines()
    assert lines == written(rows, "tsv").split("\n")[:-1]
    cells = [[" ".join(cell.splitlines()).replace("\t", " ") for cell in row] for row in flat]
    assert [line.split("\t") for line in lines] == [["a", "b ", "c"], *cells]


@given(st.lists(WILD, max_size=5))
def test_a_text_is_a_line_to_every_reader(texts):
    lines = written(texts, "lines")
    assert lines.splitlines() == lines.split("\n")[:-1] == [" ".join(text.splitlines()) for text in texts]


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_mappings_and_lists_take_columns(form):
    rows = [{"a": {"x": 1, "y": 2}, "b": ["1", "2"], "c": ["k"]}, {"a": {"x": 0.5, "y": None}, "b": ["3"], "c": []}]
    names = ["a.x", "a.y", "b_1", "b_2", "c"]
    assert read(written(rows, form, b=2, c=1), form) == [names, ["1", "2", "1", "2", "k"], ["0.5", "", "3", "", ""]]
    with pytest.raises(ValueError, match="zip"):
        written(rows, form, b=1)
    with pytest.raises(ValueError, match=r"the columns of the first one, \['a'\], got \['b'\]"):
        written([{"a": 1}, {"b": 1}], form)
    assert written([], form) == ""


def test_text_that_is_no_unicode_is_written_too(tmp_path):
    for form in FORMATS:
        with writing(str(tmp_path / f"a.{form}")) as write:
            write([{"file": "\udcff.png"}])
        assert "\\udcff.png" in (tmp_path / f"a.{form}").read_text()
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"file": "\udcff.png"}


def test_endings_tell_the_format():
    assert [format_of(f"a.b/x.{form}") for form in (*FORMATS, "TSV")] == [*FORMATS, "tsv"]
    assert [format_of(path) for path in ("-", "/dev/fd/63", "x.txt", "x")] == ["jsonl"] * 4
    assert format_of("lines.en", "lines") == "lines"


def test_rows_are_written_as_they_come(tmp_path):
    """Into a pipe, to standard output and into a file, which has none of them before the last."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    found = []
    with writing(str(tmp_path / "pipe")) as write:
        for n in range(3):
            write([{"n": n}])
            found.append(json.loads(os.read(reader, 99)))
    os.close(reader)
    assert found == [{"n": n} for n in range(3)]

    def rows():
        for n in range(3):
            (part,) = tmp_path.glob(".*")
            assert part.read_text().count("\n") == (n + 1 if n else 0)
            assert not (tmp_path / "a.csv").exists()
            yield {"n": n}

    with writing(str(tmp_path / "a.csv")) as write:
        write(rows())
    assert (tmp_path / "a.csv").read_text() == "n\n0\n1\n2\n"
    assert not [*tmp_path.glob(".*")]


def test_what_is_printed_beside_standard_output_goes_to_standard_error(capsys):
    print("before")
    with writing("-", "tsv") as write:
        write([{"é": 1}])
        print("beside")
    print("after")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("before\né\n1\nafter\n", "beside\n")


def test_no_path_is_no_file(capsys):
    with writing("") as write:
        write([{"a": 1}])
        print("beside")
    assert capsys.readouterr().out == "beside\n"


def test_a_command_that_fails_leaves_no_file(tmp_path):
    (tmp_path / "old.csv").write_text("old")

    def rows():
        yield {"a": 1}
        raise UserError("a reason")

    def write_all(name: str) -> None:
        with writing(str(tmp_path / name)) as write:
            write(rows())

    for name in ("old.csv", "new.csv"):
        with pytest.raises(UserError, match="a reason"):
            write_all(name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.csv", "old")]


def test_what_cannot_be_written_is_said_before(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere" / "a.csv")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in ("", "-", tmp_path / "a.csv", tmp_path / "a.TSV", tmp_path / "a.jsonl", tmp_path / "pipe", os.devnull):
        require_table("--output", str(path))
    require_table("--output", str(tmp_path / "lines.en"), lines=True)
    for path in (tmp_path / "a.png", tmp_path / "pipe"):
        require_writable("--attention", str(path), [".png"])
    for path, words in (
        (tmp_path / "a.txt", "must end in .csv or .tsv or .jsonl, got"),
        (tmp_path / "folder.csv", "is a folder: give a file"),
        (tmp_path / "nowhere" / "a.csv", f"the folder {tmp_path / 'nowhere'} is not there"),
        (tmp_path / "link.csv", f"the folder {tmp_path / 'nowhere'} is not there"),
        (tmp_path / "file" / "a.csv", f"the folder {tmp_path / 'file'} is not there"),
    ):
        with pytest.raises(UserError) as caught:
            require_table("--output", str(path))
        assert str(caught.value).startswith("--output ")
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="must end in"):
        require_writable("--attention", "-", [".png"])
    (tmp_path / "b.csv").touch()
    for denied, refused in ((tmp_path, ["a.csv", "b.csv"]), (tmp_path / "b.csv", ["b.csv"]), (tmp_path / "pipe", ["pipe"])):
        monkeypatch.setattr(os, "access", lambda place, mode, denied=denied: str(place) != str(denied))
        for name in ("a.csv", "b.csv", "pipe"):
            why = pytest.raises(UserError, match=f"--output {tmp_path / name} may not be written")
            with why if name in refused else contextlib.nullcontext():
                require_table("--output", str(tmp_path / name))
