from __future__ import annotations

import csv
import io
import json
import random

import pytest
import torch
from command import complaint, one_line
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

import zoo
from tasks import text_models
from tasks.class_scores import Measured, text_scores
from tasks.data import labelled
from tasks.data.docstrings import docstrings, texts_of
from tasks.data.documents import Document
from tasks.data.tokenizer import load_tokenizer, train_tokenizer
from tasks.text_classification import TrainOptions, begin, main
from zoo.pretrained.huggingface import to_huggingface

WORDS = {"animal": ["cat", "dog", "cow", "hen"], "tool": ["saw", "axe", "awl", "drill"], "fruit": ["fig", "plum", "pear", "lime"]}


def table(count: int = 90, pairs: bool = False) -> list[dict[str, str]]:
    """Texts that a word tells the class of; of pairs a word of the second text."""
    draw, classes = random.Random(0), [*WORDS]
    rows = []
    for n in range(count):
        name = classes[n % len(classes)]
        text = " ".join([*draw.choices(["the", "a", "of", "in", "my"], k=draw.randint(1, 6)), draw.choice(WORDS[name])])
        rows.append({"text": "what is it?", "text_pair": text, "label": name} if pairs else {"text": text, "label": name})
    return rows


def write(path, rows):
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def small(data, runs, name="a", *more):
    sizes = (
        "--layers 1 --dim 32 --vocab_size 300 --context 24 --epochs 8 --lr 0.01 --max_tokens 100 --dropout 0 --token_dropout 0"
    )
    return ["train", "--train", str(data), "--runs_dir", str(runs), "--name", name, *sizes.split(), "--tracker", "none", *more]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "texts.csv", table())


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert main(small(data, runs)) == 0
    return runs


def test_a_run_learns_what_a_word_tells(runs):
    summary = json.loads((runs / "a" / "summary.json").read_text())
    assert summary["test_accuracy"] == 1
    assert summary["test_macro_f1"] == summary["test_matthews"] == 1
    assert summary["baselines"].keys() == {"commonest class", "naive Bayes", "linear machine"}
    config = json.loads((runs / "a" / "config.json").read_text())
    assert config["classes"] == sorted(WORDS)
    assert {"confusion.png", "curves.png", "tokenizer.json"} <= {path.name for path in (runs / "a").iterdir()}


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_as_many_answers_as_lines(runs, tmp_path, form):
    lines = ["my plum 3", "", "the saw " * 30, "a cat"]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    out = tmp_path / f"out.{form}"
    given = ["predict", "--name", "a", "--runs_dir", runs, "--input", tmp_path / "in.txt", "--output", out, "--top", 2]
    assert main([*map(str, given)]) == 0
    content = out.read_text()
    found = [*csv.DictReader(io.StringIO(content))] if form == "csv" else [json.loads(line) for line in content.splitlines()]
    assert [row["text"] for row in found] == lines
    assert [found[n]["class"] for n in (0, 2, 3)] == ["fruit", "tool", "animal"]
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in found)


def test_texts_of_the_command_line_alone_and_together(runs, capsys):
    def said(*texts):
        assert main(["predict", "--name", "a", "--runs_dir", str(runs), "--text", *texts]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    together = said("my plum", "the saw of the dog in a cat of my cow")
    for row, (alone,) in zip(together, map(said, ("my plum", "the saw of the dog in a cat of my cow")), strict=True):
        assert row.pop("text") == alone.pop("text")
        assert [row[k] for k in row if "class" in k] == [alone[k] for k in alone if "class" in k]
        assert row["probability"] == pytest.approx(alone["probability"], abs=1e-5)


def test_evaluate_is_the_test_of_the_run(runs, data, capsys, tmp_path):
    where = ["--name", "a", "--runs_dir", str(runs)]
    assert main(["evaluate", *where, "--per_class", "--output", str(tmp_path / "said.csv")]) == 0
    told = capsys.readouterr().out
    assert "test accuracy 1.0000, macro f1 1.0000, matthews 1.0000" in told
    assert [line.split()[0] for line in told.splitlines()[1:]] == ["class", *sorted(WORDS)]
    said = [*csv.DictReader(io.StringIO((tmp_path / "said.csv").read_text()))]
    assert all(row["class"] == row["true"] for row in said)
    other = write(tmp_path / "other.tsv", [{"text": "a cat", "label": "tool"}, {"text": "my fig", "label": "fruit"}])
    assert main(["evaluate", *where, "--test", str(other)]) == 0
    assert "test accuracy 0.5000" in capsys.readouterr().out
    unknown = write(tmp_path / "unknown.csv", [{"text": "a cat", "label": "cats"}])
    assert "'cats'" in one_line(capsys, main, "evaluate", *where, "--test", unknown)


def test_two_texts_are_read_together(tmp_path, capsys):
    data = write(tmp_path / "pairs.jsonl", table(60, pairs=True))
    assert main(small(data, tmp_path, "pairs", "--epochs", "10")) == 0
    assert json.loads((tmp_path / "pairs" / "summary.json").read_text())["valid_accuracy"] == 1
    where = ["predict", "--name", "pairs", "--runs_dir", str(tmp_path)]
    capsys.readouterr()
    assert main([*where, "--text", "what is it?", "--text_pair", "my plum"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["text_pair"]) == ("what is it?", "my plum")
    assert answer["class"] in WORDS
    (tmp_path / "lines.txt").write_text("what is it?\tmy plum\nno tab\n")
    assert "line 2" in one_line(capsys, main, *where, "--input", tmp_path / "lines.txt")


def test_a_run_goes_on_as_if_unbroken(data, tmp_path):
    whole, parts = small(data, tmp_path, "whole", "--epochs", "2"), small(data, tmp_path, "parts", "--epochs", "1")
    assert main(whole) == 0
    assert main([*parts, "--schedule", "constant"]) == 0
    assert main([*small(data, tmp_path, "again", "--epochs", "2"), "--schedule", "constant"]) == 0
    assert main(["train", "--name", "parts", "--runs_dir", str(tmp_path), "--resume", "--epochs", "2"]) == 0
    assert last(tmp_path / "parts") == last(tmp_path / "again")
    assert last(tmp_path / "parts") != last(tmp_path / "whole")


def last(folder):
    """What was measured after the last epoch, without times."""
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in row.items() if name.startswith(("train_", "valid_"))}


def test_start_from_another_run_matches_classes_by_name(runs, tmp_path, capsys):
    rows = [row | {"label": {"animal": "z", "tool": "tool", "fruit": "b"}[row["label"]]} for row in table()]
    other = write(tmp_path / "other.csv", rows)
    capsys.readouterr()
    assert main(small(other, tmp_path, "b", "--init", str(runs / "a"), "--epochs", "1")) == 0
    assert "a new output layer" in capsys.readouterr().out
    assert main(small(write(tmp_path / "same.csv", table()), tmp_path, "c", "--init", str(runs / "a"), "--epochs", "1")) == 0
    assert "the output layer is kept" in capsys.readouterr().out
    assert json.loads((tmp_path / "c" / "summary.json").read_text())["test_accuracy"] == 1
    same = load_tokenizer(tmp_path / "c" / "tokenizer.json").fingerprint
    assert same == load_tokenizer(runs / "a" / "tokenizer.json").fingerprint


def test_start_from_a_published_encoder(data, tmp_path):
    """Its logits for our rows are those of the class that published it."""
    tokenizer = train_tokenizer((row["text"] for row in table()), "bpe", 290)
    sizes = dict(dim=32, heads=2, hidden_dim=64, layers=1, max_positions=32, vocab_size=tokenizer.vocab_size)
    model = zoo.create("bert_base", head="sequence", num_classes=3, **sizes).eval()
    theirs = to_huggingface(model)
    theirs.save_pretrained(tmp_path / "hub")
    tokenizer.save(tmp_path / "hub" / "tokenizer.json")
    assert main(small(data, tmp_path, "d", "--init", f"hf:{tmp_path / 'hub'}", "--epochs", "1")) == 0
    options = TrainOptions(train=[str(data)], init=f"hf:{tmp_path / 'hub'}", context=24, device="cpu")
    task, ours = begin(options, tmp_path / "none")
    tokens, types, _ = task.batch("valid", torch.arange(4))
    mask = tokens != tokenizer.pad
    expected = theirs(input_ids=tokens, attention_mask=mask.long(), token_type_ids=types).logits
    assert torch.allclose(ours.eval()(tokens, mask, types), expected, atol=1e-5)


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(data, tmp_path):
    """Which a mean over each micro-batch would not: texts are unequally many in them. Reported as transformers 37766."""
    options = TrainOptions(train=[str(data)], layers=1, dim=32, vocab_size=300, context=24, token_dropout=0.0, dropout=0.0)
    task, model = begin(options, tmp_path)
    model = model.double()
    indices = torch.arange(7)
    parts = [indices, *indices.tensor_split(3)]
    found = []
    for part in parts:
        model.zero_grad()
        task.loss(model, task.batch("train", part))[0].backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    whole, *shares = found
    assert torch.allclose(sum(shares), whole, rtol=0, atol=1e-12 * float(whole.norm()))
    assert len({len(part) for part in parts[1:]}) == 2


def test_scores_are_those_of_scikit_learn():
    draw = torch.Generator().manual_seed(0)
    logs, labels = torch.randn(50, 4, generator=draw).log_softmax(-1), torch.randint(4, (50,), generator=draw)
    found, said = text_scores(Measured(logs, labels)), logs.argmax(-1).numpy()
    assert found["macro_f1"] == pytest.approx(f1_score(labels.numpy(), said, average="macro"))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(labels.numpy(), said))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=2), st.integers(0, 60))
def test_texts_are_shortened_to_fit_the_longer_one_first(lengths, room):
    kept = text_models.shortened(lengths, room)
    assert sum(kept) == min(sum(lengths), room)
    assert all(0 <= k <= n for k, n in zip(kept, lengths, strict=True))
    if len(kept) == 2 and kept != lengths:
        short = min(range(2), key=lambda n: lengths[n])
        assert kept[short] == lengths[short] or abs(kept[0] - kept[1]) <= 1


def test_docstrings_are_of_twelve_modules_each_text_once(monkeypatch):
    one = 'def f():\n    """The text number {n} of module {m}."""\ndef g():\n    """What stands in two."""\n'
    sources = [Document(f"m{m}/{n}.py", one.format(m=m, n=n)) for m in range(14) for n in range(m + 1)]
    monkeypatch.setattr("tasks.data.docstrings.stdlib", lambda: sources)
    found = docstrings()
    assert {module for _, module in found} == {f"m{m}" for m in range(2, 14)}
    assert len({text for text, _ in found}) == len(found) == sum(range(3, 15))
    assert ("The text number 0 of module 2.", "m2") in found
    assert [*texts_of('"""One that is long enough."""\ndef f():\n    """Two, with\n      indentation."""\n')] == [
        "One that is long enough.", "Two, with\nindentation."
    ]  # fmt: skip
    assert [*texts_of("print 'of another Python'")] == []


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a,b,c\n1,2,3\n", "", "columns text and label"),
        ("text,label\nx\n", "", "line 2: no column 2"),
        ("text,label\nx,\n", "", "line 2: no label"),
        ("text,label\nx,y\n", "text,kind", "columns text, kind"),
        ("text,label\nx,y\n", "0,1", "--columns must be"),
        ("text,label\nx,y\nz,y\n", "", "there must be two classes or more"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, content, columns, message):
    (tmp_path / "x.csv").write_text(content)
    path = [str(tmp_path / "x.csv")]
    assert message in complaint(lambda: labelled.load("docstrings", path, path, path, columns))


def test_columns_by_number_by_name_and_without_names(tmp_path):
    (tmp_path / "x.tsv").write_text("7\tgood\tof books\n8\tbad\tof films\n")
    (tmp_path / "y.csv").write_text('Label,n,Text\npos,1,"a, b"\n')
    (tmp_path / "z.tsv").write_text("a text\tpos\n")
    assert labelled.read([tmp_path / "x.tsv"], "3,2", []) == [(("of books",), "good"), (("of films",), "bad")]
    assert labelled.read([tmp_path / "y.csv"], "", []) == [(("a, b",), "pos")]
    notes: list[str] = []
    assert labelled.read([tmp_path / "z.tsv"], "", notes) == [(("a text",), "pos")]
    assert "column 1 is the text" in notes[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "vgg11"], "vgg11 is no model that reads texts"),
        (["--init", "nowhere"], "--init nowhere is not there"),
        (["--init", "hf:nowhere"], "nowhere is not there"),
        (["--freeze", "head1"], "--freeze"),
        (["--context", "3"], "--context must be 4 or more"),
    ],
)
def test_what_cannot_be_is_said_before_a_run_is_made(data, tmp_path, capsys, words, message):
    assert message in one_line(capsys, main, *small(data, tmp_path / "runs", "x", *words))
    assert not (tmp_path / "runs").exists()
