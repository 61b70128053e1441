"""Pairs out of columns and translation memories: by number, by name, by language; and every complaint."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from command import complaint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data import DataError
from tasks.data.tables import columns_of
from tasks.data.text import Counts, nonempty, read
from tasks.data.text_files import where

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=6)


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


TATOEBA = [["77", "Das ist gut.", "1276", "That is good."], ["81", "Ja.", "1277", "Yes."]]


def table(rows: list[list[str]], ending: str) -> str:
    if ending.startswith(".tsv"):
        return "".join("\t".join(row) + "\n" for row in rows)
    csv.writer(buffer := io.StringIO(), lineterminator="\n").writerows(rows)
    return buffer.getvalue()


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".tsv.gz", ".csv.gz"])
def test_columns_by_number_and_by_name(tmp_path, ending):
    right = [(row[1], row[3]) for row in TATOEBA]
    path = write(tmp_path / f"a{ending}", "\ufeff" + table(TATOEBA, ending))  # Tatoeba's begin with a mark
    assert list(read([path], columns="2,4")) == right
    assert list(read([path], columns=" 4, 2")) == [(b, a) for a, b in right]
    assert list(read([path])) == [(row[0], row[1]) for row in TATOEBA]
    named = write(tmp_path / f"b{ending}", table([["id", "German", "id2", "English"], *TATOEBA], ending))
    assert list(read([named], columns="German,English")) == right
    assert list(read([named], columns="2,English")) == right
    for header, languages in ((["score", "de", "x", "en"], ("de", "en")), (["", "source", "", "target"], (None, None))):
        path = write(tmp_path / f"c{ending}", table([header, *TATOEBA], ending))
        assert list(read([path], *languages)) == right
    assert list(read([path], "de", "en")) == right  # source and target go for any languages
    assert list(read([named], "de", "en")) == right
    assert len(list(read([named], "fr", "en"))) == 3


@pytest.mark.parametrize("ending", [".tsv", ".csv"])
def test_columns_that_are_not_there(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", table([["id", "German", "English"], ["1", "eins", "one"], ["2", "zwei"]], ending))
    message = complaint(read, [path], columns="German,Englisch")
    assert message == f"--columns: {path} has no column 'Englisch', its first line has 'id', 'German', 'English'"
    assert complaint(read, [path], columns="German,English") == f"{path}, line 3: no column 3, it has 2"
    assert complaint(read, [path], columns="1,9") == f"{path}, line 1: no column 9, it has 3"


@pytest.mark.parametrize("columns", ["2", "1,2,3", "a,", "2,2", "0,1", ","])
def test_columns_are_two(columns):
    assert complaint(columns_of, columns).startswith("--columns must be two numbers from 1, or two names, such as 2,4 or ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(CELLS, min_size=3, max_size=3).filter(lambda row: any(map(str.strip, row))), max_size=4))
def test_csv_is_pythons(tmp_path, rows):
    """Whatever stands in a cell: commas, quotes, line feeds, every other break."""
    path = write(tmp_path / "a.csv", table(rows, ".csv"))
    assert list(read([path], columns="3,1")) == [(row[2], row[0]) for row in rows]


def test_bad_csv_is_located(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n"c"d,e\n')
    assert complaint(read, [path]).startswith(f"{path}, line 2: not CSV (")
    path = write(tmp_path / "a.csv", 'a,b\n"c,d\n')
    assert complaint(read, [path]).startswith(f"{path}, line 2: not CSV (")
    path = write(tmp_path / "a.csv", "a,b\nc\n")
    assert complaint(read, [path]) == f"{path}, line 2: source and target must stand in two columns with a comma between"


def test_columns_of_jsonl_are_keys(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"src": "a", "tgt": "b", "de": "c", "en": "d"}) + "\n")
    assert list(read([path], "de", "en", "src,tgt")) == [("a", "b")]
    assert "expected texts 'src' and 'x', got the keys src, tgt, de, en" in complaint(read, [path], "de", "en", "src,x")
    path = write(tmp_path / "a.jsonl", '{"source": "a\\ud83d", "target": "b"}\n')
    assert complaint(read, [path]) == f"{path}, line 1: '\\ud83d' is half a character"
    path = write(tmp_path / "a.jsonl", "[" * 100_000 + "\n")
    assert "not JSON" in complaint(read, [path])


# ----------------------------------------------------------------------------------------------------------------------- TMX

TMX = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"{space}><header srclang="en" segtype="sentence" datatype="x"/>
<body>
<tu tuid="1"><prop type="x">no</prop>
<tuv xml:lang="DE-de"><seg>Größe &amp; Maß</seg></tuv><tuv xml:lang="en_US"><seg>Size</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Press <bpt i="1">&lt;b&gt;</bpt>F1<ept i="1">&lt;/b&gt;</ept><ph>{{<sub>no</sub>}}</ph>
 <hi>now</hi>!</seg></tuv><tuv xml:lang="fr"><seg>Non</seg></tuv>
<tuv xml:lang="de"><note>no</note><seg>F1 drücken</seg></tuv></tu>
<!-- one side only -->
<tu><tuv xml:lang="de"><seg>Allein</seg></tuv></tu>
<tu><tuv lang="de"><seg>alt</seg></tuv><tuv lang="en"><seg>old</seg></tuv><tuv lang="en-GB"><seg>second</seg></tuv></tu>
</body></tmx>
"""
UNITS = [("Größe & Maß", "Size"), ("F1 drücken", "Press F1\n now!"), ("alt", "old")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
@pytest.mark.parametrize("space", ["", ' xmlns="http://www.lisa.org/tmx14"'])
@pytest.mark.parametrize("packed", [False, True])
def test_translation_memories(tmp_path, encoding, space, packed):
    content, path = TMX.format(encoding=encoding, space=space).encode(encoding), tmp_path / f"a.tmx{'.gz' * packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert list(read([path], "de", "en")) == UNITS
    assert list(read([path], "EN", "De")) == [(b, a) for a, b in UNITS]
    assert list(read([path], "en-GB", "de")) == [("second", "alt")]
    assert (
        complaint(read, [path], "de", "pl")
        == f"{path} has no unit in de and pl; its languages are DE-de, en_US, en, fr, de, en-GB"
    )
    assert "give --source and --target; its languages are DE-de, en_US" in complaint(read, [path])
    assert list(read([path], "fr", "en")) == [("Non", "Press F1\n now!")]


def test_a_large_memory_is_read_unit_by_unit(tmp_path):
    """What was read is gone: the tree holds one unit."""
    from xml.etree import ElementTree

    unit = '<tu><tuv xml:lang="de"><seg>a</seg></tuv><tuv xml:lang="en"><seg>b</seg></tuv></tu>\n'
    path = write(tmp_path / "a.tmx", f"<tmx><body>{unit * 5000}</body></tmx>")
    most, parse = 0, ElementTree.iterparse

    def watched(*arguments):
        nonlocal most
        bodies = []
        for event, element in parse(*arguments):
            if event == "start" and element.tag == "body":
                bodies.append(element)
            yield event, element
            most = max(most, *(len(body) for body in bodies), 0)

    ElementTree.iterparse = watched
    try:
        assert sum(1 for _ in read([path], "de", "en")) == 5000
    finally:
        ElementTree.iterparse = parse
    assert 0 < most < 1500  # the parser is some units ahead


BOMB = "<!DOCTYPE tmx [<!ENTITY a0 'x'>" + "".join(f"<!ENTITY a{n + 1} '{f'&a{n};' * 10}'>" for n in range(9)) + "]>"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no xml",
        "<tmx><body><tu>",
        "<tmx><body></tmx>",
        "<?xml version='1.0' encoding='klingon'?><tmx/>",
        BOMB + "<tmx><body><tu><tuv xml:lang='de'><seg>&a9;</seg></tuv></tu></body></tmx>",
        "<!DOCTYPE t [<!ENTITY a SYSTEM 'file:///etc/hosts'>]><tmx><body><tu><tuv><seg>&a;</seg></tuv></tu></body></tmx>",
    ],
)
def test_damaged_memories(tmp_path, content):
    path = write(tmp_path / "a.tmx", content)
    assert complaint(read, [path], "de", "en").startswith(f"{path} is damaged, no translation memory (")


def test_a_memory_of_nothing(tmp_path):
    for content in ("<tmx><body/></tmx>", "<html><p/></html>", "<tmx><body><tu/><tu><tuv/></tu></body></tmx>"):
        path = write(tmp_path / "a.tmx", content)
        assert complaint(read, [path], "de", "en") == f"{path} has no unit in de and en; its languages are none"
    path = write(tmp_path / "a.tmx", "<tmx>" + "<hi>" * 20_000 + "</hi>" * 20_000 + "</tmx>")
    assert "no unit" in complaint(read, [path], "de", "en")


# --------------------------------------------------------------------------------------------------------------------- damage

SOUND = {
    ".tsv": "a\tb\né\tc\n",
    ".csv": 'a,b\n"x\n,y",z\n',
    ".jsonl": '{"source": "a", "target": "b"}\n{"translation": {"source": "a", "target": "b"}}\n',
    ".po": 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n\nmsgid "a"\nmsgid_plural "b"\nmsgstr[0] "c"\n',
    ".tmx": TMX.format(encoding="utf-8", space=""),
}

TROUBLE = [b'"', b'"x', b"\xff", b"<", b"&x;", b"\0", b"{", b"\\", b"]]>", b"\n"]
HARMFUL = st.one_of(st.sampled_from(TROUBLE), st.binary(max_size=4))


@pytest.mark.parametrize("kind", SOUND)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    packed=st.booleans(),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3), HARMFUL), max_size=4),
    columns=st.sampled_from(["", "2,1", "source,target"]),
    languages=st.sampled_from([(None, None), ("de", "en")]),
)
def test_damage_of_any_kind_is_one_line(tmp_path, kind, packed, edits, columns, languages):
    """Files with bytes changed here and there are read, or refused by a `DataError`; nothing else is raised."""
    content = bytearray(SOUND[kind].encode())
    content = bytearray(gzip.compress(content)) if packed else content
    for place, size, new in edits:
        place %= len(content) or 1
        content[place : place + size] = new
    path = tmp_path / f"a{kind}{'.gz' * packed}"
    path.write_bytes(content)
    try:
        found = [text for pair in read([path], *languages, columns) for text in pair]
    except DataError as error:
        found = str(error).splitlines()[1:]
        assert not found
    assert all(isinstance(text, str) for text in found)


# ------------------------------------------------------------------------------------------------- what is told of the pairs


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".tsv.gz", ".csv.gz"])
@pytest.mark.parametrize(
    ("rows", "languages", "columns", "note"),
    [
        (TATOEBA, ("de", "en"), "", "line 1: 4 columns, 1,2 are taken: --columns chooses others"),
        ([["a", "b"], ["a", "b", "c"], *TATOEBA], (None, None), "", "line 2: 3 columns, 1,2 are taken: --columns chooses others"),
        ([["", "", ""], ["a", "b", "x"]], (None, None), "", "line 2: 3 columns, 1,2 are taken: --columns chooses others"),
        (TATOEBA, ("de", "en"), "1,2", ""),
        (TATOEBA, ("de", "en"), "2,4", ""),
        ([["id", "de", "en"], ["1", "a", "b"]], ("de", "en"), "", ""),
        ([["id", "source", "target"], ["1", "a", "b"]], (None, None), "", ""),
        ([["a", "b"], ["", ""], ["a", "b", "", " "]], (None, None), "", ""),
    ],
)
def test_columns_that_are_left_out_are_told(tmp_path, ending, rows, languages, columns, note):
    """Once a file, however often it is read; not where they were chosen, by a header or by number."""
    path, notes = write(tmp_path / f"a{ending}", table(rows, ending)), {}
    for _ in range(2):
        list(read([path], *languages, columns, notes))
    assert notes == ({str(path): f"{path}, {note}"} if note else {})


def test_pairs_know_where_they_stand(tmp_path):
    """File and line, of every kind of file that has lines, whatever is skipped before; and they stay equal to other pairs."""
    po = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n\nmsgid "a"\nmsgstr ""\n\nmsgid "b"\nmsgstr "c"\n'
    for name, text, place in (
        ("a.tsv", "source\ttarget\n\n\tx\n b\tc \n", "line 4"), ("a.csv", '"a\n",\n\n b,c \n', "line 4"),
        ("a.jsonl", '\n{"source": "", "target": "x"}\n\n{"source": "b ", "target": "c"}\n', "line 4"), ("a.po", po, "line 8"),
        ("a.tmx", TMX.format(encoding="utf-8", space="").replace("alt", " b").replace("old", "c "), "unit 4"),
    ):  # fmt: skip
        path = write(tmp_path / name, text)
        found = [*nonempty(read([path], *(("de", "en") if name == "a.tmx" else (None, None))), Counts())][-1]
        assert found == ("b", "c")
        assert where(found) == f"{path}, {place}"
    sides = [write(tmp_path / f"a.{side}", f"\n{text}\n") for side, text in (("de", "b"), ("en", "c"))]
    (found,) = nonempty(read(sides), Counts())
    assert (found, where(found)) == (("b", "c"), f"{sides[0]} and {sides[1]}, line 2")
    assert where(("b", "c")) == ""


@pytest.mark.parametrize(
    ("header", "languages"),
    [
        (["de", "en"], ("de", "en")), (["English", "German"], ("de", "en")), (["id", "Deutsch", "ENGLISH"], ("de", "en")),
        (["Source", "Target"], ("xx", "yy")), (["中文", "français"], ("zh", "fr")), (["pt_BR", "de"], ("pt_BR", "de")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".tsv", ".csv"])
def test_a_header_that_names_the_languages_is_none_of_the_pairs(tmp_path, ending, header, languages):
    row = [f"text {n}" for n in range(len(header))]
    path = write(tmp_path / f"a{ending}", table([header, row], ending))
    (pair,) = read([path], *languages)
    order = ["text 1", "text 0"] if header[0] == "English" else ["text 0", "text 1"] if len(header) == 2 else ["text 1", "text 2"]
    assert list(pair) == order


def test_a_first_line_of_other_words_is_a_pair(tmp_path):
    path = write(tmp_path / "a.tsv", "Deutsch\tGermane\nEnglisch\tEnglish\n")
    assert list(read([path], "de", "en")) == [("Deutsch", "Germane"), ("Englisch", "English")]
