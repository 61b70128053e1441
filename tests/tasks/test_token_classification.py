"""The command that finds spans in texts: what it reads, learns, says, and how it refuses."""

from __future__ import annotations

import gzip
import io
import json
import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from command import complaint, one_line
from hypothesis import given
from hypothesis import strategies as st

import zoo
from tasks.data.date_parts import LOCALES, date_parts, example
from tasks.data.spans import BadTag, Span, follows, tag_set, to_spans
from tasks.data.splitting import held_out
from tasks.data.tagged import joined, read
from tasks.text_models import load_reader
from tasks.token_classification import main
from tasks.token_labelling import commonest, label, likeliest, refusals, spans_of

WORDS = {"Ada": "B-PER", "Bob": "B-PER", "Smith": "I-PER", "Oslo": "B-LOC", "sees": "O", "in": "O", "👍🏽": "O", ".": "O"}
ROWS = ["Ada sees Bob Smith .", "Bob in Oslo .", "Ada Smith in Oslo 👍🏽", "Oslo sees Ada ."]


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    path = tmp_path_factory.mktemp("tagged") / "train.conll"
    path.write_text("\n".join("".join(f"{word} {WORDS[word]}\n" for word in row.split()) for row in ROWS * 8))
    return path


def small(tagged, runs, *more):
    sizes = ["--dim=16", "--layers=1", "--context=12", "--overlap=4", "--vocab_size=270", "--epochs=10", "--batch_tokens=120"]
    options = ["--lr=0.01", "--dropout=0", "--tracker=none", "--device=cpu"]
    return ["train", "--train", str(tagged), "--valid", str(tagged), "--runs_dir", str(runs), *sizes, *options, *more]


@pytest.fixture(scope="module")
def runs(tagged, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert main(small(tagged, runs, "--name", "a")) == 0
    return runs


def predicted(capsys, runs, *more):
    assert main(["predict", "--name", "a", "--runs_dir", str(runs), *map(str, more)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_learns_and_leaves_what_there_is_to_see(runs):
    folder = runs / "a"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_f1"] > 0.95
    assert summary["commonest_label_f1"] == 1, "each word has one label here"
    assert {"curves.png", "index.html", "tokenizer.json", "best.safetensors", "examples.json"} <= {
        p.name for p in folder.iterdir()
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["tags"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert (config["context"], config["overlap"]) == (12, 4)


def test_spans_have_offsets_in_characters(runs, capsys, tmp_path, monkeypatch):
    text = "👍🏽 Bob Smith in\tOslo"
    (row,) = predicted(capsys, runs, "--text", text)
    assert row["text"] == text
    assert [(x["label"], x["text"]) for x in row["spans"]] == [("PER", "Bob Smith"), ("LOC", "Oslo")]
    assert all(text[x["start"] : x["end"]] == x["text"] and 0.2 < x["score"] <= 1 for x in row["spans"])
    lines = tmp_path / "rows.jsonl"
    lines.write_text(json.dumps({"words": ["Bob", "Smith", "in", "Oslo"]}) + "\n\n" + json.dumps({"text": text}) + "\n")
    assert [[x["text"] for x in r["spans"]] for r in predicted(capsys, runs, "--input", lines)] == [["Bob Smith", "Oslo"]] * 2
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(f"{text}\n\n".encode())))
    assert predicted(capsys, runs) == [row, {"text": "", "spans": []}]
    out = tmp_path / "spans.csv"
    predicted(capsys, runs, "--text", text, "--output", out)
    assert out.read_text().splitlines()[0] == "text,spans"


def test_a_text_of_many_windows_says_in_its_middle_what_a_window_says(runs):
    """And no text changes what is said of another one."""
    reader = load_reader(runs / "a")
    texts = [joined((" ".join(ROWS) + " ").split() * n, ()) for n in (1, 6, 2)]
    together = label(reader, texts, 5)
    for text, found in zip(texts, together, strict=True):
        (alone,) = label(reader, [text])
        assert found.spans == alone.spans
        assert found.scores == pytest.approx(alone.scores, abs=1e-5)
    per = [span for span in together[1].spans if span.type == "PER"]
    assert len(per) > 0.8 * 6 * 5


def test_measuring_again_gives_the_same(runs, tagged, capsys, tmp_path):
    summary = json.loads((runs / "a" / "summary.json").read_text())
    out = tmp_path / "spans.jsonl"
    assert main(["evaluate", "--name", "a", "--runs_dir", str(runs), "--output", str(out)]) == 0
    assert f"span F1 {summary['test_f1']:.4f}" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["true"][1] == {"label": "PER", "start": 9, "end": 18}
    assert main(["evaluate", "--name", "a", "--runs_dir", str(runs), "--test", str(tagged), "--scheme", "iob2"]) == 0
    assert f"span F1 {summary['test_f1']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "gpt2"], "gpt2 is no model that reads texts"),
        (["--overlap", "6"], "--overlap must be below half of --context, 6, got 6"),
        (["--batch_tokens", "11"], "--batch_tokens must be at least --context, 12, got 11"),
        (["--scheme", "iobes"], "train.conll, line 3: 'O' after 'B-PER'"),
        (["--scheme", "bio"], "--scheme must be one of"),
        (["--test", "nowhere"], "nowhere is not there"),
        (["--init", "hf:nowhere"], "nowhere is not there"),
    ],
)
def test_what_is_wrong_is_one_line(more, words, tagged, tmp_path, capsys):
    assert words.replace("line 3", "line 2") in one_line(capsys, main, *small(tagged, tmp_path, "--name", "b", *more))
    assert not (tmp_path / "b").exists()


def test_wrong_lines_of_json_are_named(runs, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for content in ('{"words": ["a", ""]}', '{"text": 3}', '{"text": "a", "words": ["a"]}', "[1]", "{"):
        path.write_text('{"text": "a"}\n' + content + "\n")
        line = one_line(capsys, main, "predict", "--name", "a", "--runs_dir", runs, "--input", path)
        assert f"{path}, line 2: expected an object" in line


# ------------------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("ending", [".conll", ".tsv", ".txt.gz"])
def test_columns(ending, tmp_path):
    path = tmp_path / f"x{ending}"
    sep = "\t" if ending == ".tsv" else " "
    rows = ["-DOCSTART- -X- O O", "", "New NNP I-LOC", "York NNP I-LOC", "Oslo NNP B-LOC", "", "", "# VB O", "é NN O"]
    content = "\r\n".join(row.replace(" ", sep) for row in rows).encode()
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    first, second = read([path])
    assert (first.text, second.text) == ("New York Oslo", "# é")
    assert first.spans == (Span("LOC", 0, 2), Span("LOC", 2, 3))
    assert first.words == ((0, 3), (4, 8), (9, 13))
    assert first.place.endswith("line 3")


def test_labelled_xml_as_that_of_usaddress(tmp_path):
    path = tmp_path / "labeled.xml"
    path.write_text(
        "<AddressCollection>\n  <AddressString><AddressNumber>12</AddressNumber> <StreetName>St.</StreetName> "
        "<StreetName>John &amp; Co</StreetName> near\n <PlaceName>Rio</PlaceName></AddressString>\n</AddressCollection>\n"
    )
    (found,) = read([path])
    assert found.text == "12 St. John & Co near Rio"
    assert found.spans == (Span("AddressNumber", 0, 1), Span("StreetName", 1, 5), Span("PlaceName", 6, 7))
    assert [found.text[slice(*found.characters(span))] for span in found.spans] == ["12", "St. John & Co", "Rio"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.conll", "a O\nb\n", "line 2: expected a word and its tag"),
        ("x.conll", "a O\nb B-X\nc PER\n", "line 3: 'PER' is no tag such as"),
        ("x.conll", "a I-X\n\nb B-X\nc O\n", "line 3: no scheme fits"),
        ("x.conll", "\n\n", "no words in it"),
        ("x.conll", "a O\n\xff O\n", "line 2: not UTF-8"),
        ("x.xml", "<a><b>\n<c>d</b></a>", "line 2: no XML"),
        ("x.xml", "<a><b><c><d>e</d></c></b></a>", "text 1: <c> holds other elements"),
        ("x.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a><b><c>&b;</c></b></a>', "XML with a DOCTYPE"),
        ("x.xml", "<a><b/></a>", "no words in it"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    found = complaint(read, [tmp_path / name])
    assert words in found
    assert str(tmp_path / name) in found


def test_a_part_is_held_out_like_texts_together():
    splits, notes = held_out({"train": [f"{n % 50}" for n in range(200)]}, str)
    assert len(notes) == 1
    assert {name: len({*part}) for name, part in splits.items()} == {"train": 40, "valid": 5, "test": 5}
    assert sum(map(len, splits.values())) == 200
    assert not {*splits["train"]} & {*splits["test"], *splits["valid"]}
    assert held_out({"train": ["a"], "test": ["b"]}, str)[0] == {"train": ["a"], "valid": ["b"], "test": ["b"]}
    assert "three different texts" in complaint(held_out, {"train": ["a", "b", "b"]}, str)


def test_parts_of_dates():
    found = date_parts(60)
    assert {name: len(part) > 0 for name, part in found.items()} == {"train": True, "valid": True, "test": True}
    everything = [text for part in found.values() for text in part]
    assert len({text.text for text in everything}) == len(everything)
    assert {text.place for text in everything} <= {*LOCALES}
    kinds = {span.type for text in everything for span in text.spans}
    assert {"DAY", "MONTH", "YEAR", "WEEKDAY", "HOUR", "MINUTE", "SECOND", "PERIOD"} <= kinds
    for text in everything:
        for kind, start, end in text.spans:
            digits = text.text[text.words[start][0] : text.words[end - 1][1]]
            if kind in ("HOUR", "MINUTE", "SECOND"):
                assert digits.isdigit(), text.text
                assert int(digits) < 60
    assert example(7) == example(7)


# --------------------------------------------------------------------------------------------------------------------- decoding

TAGS = tag_set(["A", "B"])


@given(st.lists(st.lists(st.floats(-9, 0), min_size=5, max_size=5), max_size=4))
def test_the_likeliest_row_of_tags_is_the_best_of_all(rows):
    logs = np.array(rows).reshape(-1, 5)
    found = likeliest(logs, refusals(TAGS))
    to_spans([TAGS[n] for n in found], "iob2")
    every = product(range(5), repeat=len(rows))
    best = max((sum(logs[n, tag] for n, tag in enumerate(row)) for row in every if allowed(row)), default=0.0)
    assert logs[range(len(rows)), found].sum() == pytest.approx(best)


def allowed(row):
    try:
        to_spans([TAGS[n] for n in row], "iob2")
    except BadTag:
        return False
    return True


def test_a_word_without_tokens_goes_on_with_a_span_but_begins_none():
    sure = np.log(np.full((3, 5), 0.01))
    sure[0, TAGS.index("B-A")] = sure[2, TAGS.index("I-A")] = np.log(0.9)
    sure[1] = np.nan
    assert spans_of(sure, TAGS, refusals(TAGS)).spans == [Span("A", 0, 3)]
    assert spans_of(sure, TAGS, refusals(TAGS)).scores == pytest.approx([0.9])
    sure[2, TAGS.index("O")] = np.log(0.99)
    assert spans_of(sure, TAGS, refusals(TAGS)).spans == [Span("A", 0, 1)]
    assert spans_of(sure[1:2], TAGS, refusals(TAGS)).spans == []
    assert len([*follows(TAGS)]) == 2 * 4


def test_the_commonest_label_needs_no_model():
    train = [
        joined(["a", "b", "c", "c", "c"], [Span("X", 0, 2)]),
        joined(["a", "d"], [Span("Y", 0, 1)]),
        joined(["a"], [Span("X", 0, 1)]),
    ]
    assert commonest(train, [joined(["a", "e", "b", "a"], ())]) == [[Span("X", 0, 1), Span("X", 2, 4)]]


def test_the_tags_belong_to_the_model(runs):
    assert zoo.load(runs / "a").config["tags"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
