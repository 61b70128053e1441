"""The command that answers questions: what it reads, learns, says, and how it refuses."""

from __future__ import annotations

import io
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from command import complaint, one_line

from tasks.answer_scores import scores
from tasks.data import signatures
from tasks.data.questions import Question, read
from tasks.options import restored
from tasks.question_answering import TrainOptions, begin, main
from zoo import files

NAMES = ["Ada", "Bob", "Cy", "Dee"]
CITIES = ["Oslo", "Rome", "Lima", "Kyōto"]


def squad(path, rows):
    """rows: context, question, answers (text, start)."""
    paragraphs = [
        {"context": c, "qas": [{"id": f"q{n}", "question": q, "answers": [{"text": t, "answer_start": s} for t, s in answers]}]}
        for n, (c, q, answers) in enumerate(rows)
    ]
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "x", "paragraphs": paragraphs}]}))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = []
    for name in NAMES:
        for city in CITIES:
            context = f"👍🏽 {name} is in {city}."
            rows += [
                (context, "who", [(name, context.index(name))] * 2),
                (context, "where", [(city, context.index(city))]),
                (context, "why", []),
            ]
    return squad(tmp_path_factory.mktemp("squad") / "train.json", rows)


def small(data, runs, *more):
    sizes = ["--dim=16", "--layers=1", "--context=24", "--overlap=4", "--vocab_size=290", "--epochs=15", "--batch_tokens=200"]
    options = ["--lr=0.01", "--dropout=0", "--tracker=none", "--device=cpu"]
    return ["train", "--train", str(data), "--valid", str(data), "--runs_dir", str(runs), *sizes, *options, *more]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert main(small(data, runs, "--name", "a")) == 0
    return runs


def predicted(capsys, runs, *more):
    assert main(["predict", "--name", "a", "--runs_dir", str(runs), *map(str, more)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_learns_and_leaves_what_there_is_to_see(runs):
    folder = runs / "a"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_exact"] > 0.9
    assert summary["test_no_answer_exact"] > 0.9
    assert {"curves.png", "index.html", "tokenizer.json", "best.safetensors", "examples.json"} <= {
        p.name for p in folder.iterdir()
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["threshold"] == summary["threshold"]


def test_a_run_that_goes_on_needs_nothing_but_its_folder(runs, tmp_path):
    """The threshold of its best epoch stays, which may be the best one to the end; what --init named may be gone."""
    shutil.copytree(runs / "a", tmp_path / "b")
    config = files.read_json(runs / "a" / "config.json")
    files.write_json(tmp_path / "b" / "config.json", config | {"threshold": 3.5})
    options = restored(TrainOptions, files.read_json(runs / "a" / "options.json") | {"init": "gone"}, runs / "a")
    _, model = begin(options, tmp_path / "b")
    assert model.config == config | {"threshold": 3.5}


def test_answers_are_parts_of_the_context(runs, capsys, tmp_path, monkeypatch):
    context = "👍🏽 Bob is in Kyōto."
    (row,) = predicted(capsys, runs, "--question", "where", "--context", context)
    assert row["answer"] == context[row["start"] : row["end"]]
    assert "Kyōto" in row["answer"]
    assert len(row["nbest"]) == 6
    assert sum(x["score"] for x in row["nbest"]) == pytest.approx(1, abs=1e-4)
    for x in row["nbest"]:
        assert x["answer"] == ("" if x["start"] is None else context[x["start"] : x["end"]])
    lines = tmp_path / "rows.jsonl"
    questions = [
        {"id": "7", "question": "why", "context": context},
        {"question": "where", "context": context},
        {"question": "", "context": ""},
    ]
    lines.write_text("\n\n".join(map(json.dumps, questions)))
    why, where, nothing = predicted(capsys, runs, "--input", lines)
    assert (why["id"], why["answer"], why["start"], where["id"]) == ("7", "", None, "3")
    assert (where["answer"], nothing["answer"]) == (row["answer"], "")
    assert predicted(capsys, runs, "--input", lines, "--threshold", "1e6", "--n_best", "1")[0]["answer"] != ""
    assert {x["answer"] for x in predicted(capsys, runs, "--input", lines, "--threshold", "-1e6")} == {""}
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(questions[1]).encode())))
    assert predicted(capsys, runs)[0]["answer"] == row["answer"]


def test_measuring_again_gives_the_same(runs, data, capsys, tmp_path):
    summary = json.loads((runs / "a" / "summary.json").read_text())
    for more in ([], ["--test", str(data)]):
        out = tmp_path / "answers.jsonl"
        assert main(["evaluate", "--name", "a", "--runs_dir", str(runs), "--output", str(out), *more]) == 0
        assert f"exact {summary['test_exact']:.4f}" in capsys.readouterr().out
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert scores([x["answer"] for x in rows], [x["right"] for x in rows])["f1"] == pytest.approx(summary["test_f1"])
    assert len(predicted(capsys, runs, "--input", data)) == 48


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "gpt2"], "gpt2 is no model that reads texts"),
        (["--overlap", "12"], "--overlap must be below half of --context, 12, got 12"),
        (["--max_answer", "0"], "--max_answer must be 1 or more"),
        (["--test", "nowhere"], "nowhere is not there"),
    ],
)
def test_what_is_wrong_is_one_line(more, words, data, tmp_path, capsys):
    assert words in one_line(capsys, main, *small(data, tmp_path, "--name", "b", *more))
    assert not (tmp_path / "b").exists()


def test_wrong_questions_are_named(runs, tmp_path, capsys):
    use = ["predict", "--name", "a", "--runs_dir", runs]
    assert "belong together" in one_line(capsys, main, *use, "--question", "who")
    path = tmp_path / "rows.jsonl"
    for content in ('{"question": "a"}', '{"question": "a", "context": 3}', "[1]", "{"):
        path.write_text('{"question": "a", "context": "b"}\n' + content + "\n")
        assert f"{path}, line 2: expected an object" in one_line(capsys, main, *use, "--input", path)


# ------------------------------------------------------------------------------------------------------------------------- data


def test_squad_is_read(data, tmp_path):
    found = read([data])
    assert len(found) == 48
    assert found[0] == Question("q0", "who", "👍🏽 Ada is in Oslo.", ((3, 6), (3, 6)))
    assert (found[1].texts, found[2].texts) == (["Oslo"], [])
    notes = []
    assert read([squad(tmp_path / "x.json", [("a b", "q", [("b", 0)])])], notes)[0].answers == ((2, 3),)
    assert notes == ["1 answers are elsewhere than their answer_start says; they were found in their contexts"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ("[]", 'expected an object with "data"'),
        ('{"data": [{}]}', 'article 1: expected an object with "paragraphs"'),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', 'paragraph 1: expected an object with "context"'),
        ('{"data": []}', "no questions in it"),
        (
            '{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b"}]}]}]}',
            'question 1: expected an object with "answers"',
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named(content, words, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert words in complaint(read, [path])
    assert str(path) in complaint(read, [path])


@pytest.mark.parametrize("answers", [[("c", 0)], [("a", 1)], [("", 0)], [("a", "0")]])
def test_an_answer_that_is_not_there_is_named(answers, tmp_path):
    path = squad(tmp_path / "x.json", [("a b a", "q", answers)])
    assert "paragraph 1, question 1" in complaint(read, [path])


def test_questions_about_signatures():
    source = '''
class A:
    async def no(self, x): "No."
    def f(self, a, b=1, *c, d: int = (2, 3), e=None, **g) -> int:
        """Return  it.

        More."""
        def inner(y): pass
def h(é=1): pass
'''
    ((context, found),) = signatures.functions(source)
    assert context == "def f( self, a, b = 1, *c, d: int = (2, 3), e = None, **g) -> int: Return  it."
    answers = {question: [context[a:b] for a, b in places] for question, places in found}
    assert answers == {
        "default of a": [],
        "default of b": ["1"],
        "default of d": ["(2, 3)"],
        "default of e": ["None"],
        "purpose of f": ["Return  it."],
    }
    asked = [Question("", question, context, places) for question, places in found]
    assert [signatures.regular_expression(x) for x in asked] == ["", "1", "(2, 3)", "None", "Return  it."]
    assert {signatures.first_default(x) for x in asked} == {"1"}


def test_the_part_without_an_answer_is_balanced():
    asked = [Question(f"{n}", f"default of x{n}", "def f(x1=2)", ((9, 10),) if n < 20 else ()) for n in range(200)]
    found = signatures.balanced(asked, 1 / 3)
    assert sum(bool(x.answers) for x in found) == 20
    assert len(found) == 30
    assert found == [x for x in asked if x in found]
    assert signatures.baselines(found, found[:2])["commonest answer"] == ["2", "2"]
