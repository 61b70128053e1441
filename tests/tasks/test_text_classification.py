"""The command `tasks.text_classification`: it learns, resumes, is used, starts from other weights, and complains in one line."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from command import one_line
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import zoo
from layers.lora import has_lora
from tasks.data.labelled import Labelled, LabelledTexts
from tasks.data.tokenizer import train_tokenizer
from tasks.text_classification import TrainOptions, main
from tasks.text_models import Reader, called
from tasks.text_task import TextClassification
from zoo import files

WORDS = {"animal": ["cat", "dog", "cow"], "tool": ["saw", "axe", "file"], "Zahl": ["eins", "zwei", "drei"]}
BERT = ["--model", "bert_small", "--dim", "16", "--layers", "1", "--level", "word", "--context", "16", "--batch_tokens", "64"]
STEPS = ["--context", "64", "--batch_tokens", "200"]


def write(path, size, header="text,label", offset=0):
    """Two words, one of them of the class."""
    lines = [header] if header else []
    names = list(WORDS)
    for n in range(offset, offset + size):
        name = names[n % 3]
        lines.append(f'"the {WORDS[name][n // 3 % 3]} {n}",{name}')
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Texts, and runs of fastText and of BERT."""
    folder = tmp_path_factory.mktemp("texts")
    for split, size, offset in (("train", 90, 0), ("valid", 12, 90), ("test", 15, 120)):
        write(folder / f"{split}.csv", size, offset=offset)
    for name, more in (
        ("fast", ["--dim", "8", "--epochs", "6", "--lr", "0.03", *STEPS]),
        ("bert", [*BERT, "--epochs", "8", "--lr", "0.02"]),
    ):
        assert main([*words(folder), "--name", name, *more]) == 0
    return folder


def words(folder, *more):
    data = [f"--{split}={folder / f'{split}.csv'}" for split in ("train", "valid", "test")]
    return ["train", *data, "--runs_dir", str(folder / "runs"), "--tracker", "none", "--device", "cpu", *more]


@pytest.mark.parametrize("name", ["fast", "bert"])
def test_a_run_learns_and_leaves_what_there_is_to_see(here, name):
    folder = here / "runs" / name
    summary = files.read_json(folder / "summary.json")
    assert summary["test_accuracy"] > 0.9
    assert {"test_macro_f1", "test_matthews", "test_loss"} < summary.keys()
    assert len(summary["baselines"]) == 3
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"valid_accuracy", "valid_macro_f1", "valid_matthews", "train_accuracy"} < rows[-1].keys()
    assert {"curves.png", "confusion.png", "index.html", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    config = files.read_json(folder / "config.json")
    assert (config["classes"], config["texts"]) == (["Zahl", "animal", "tool"], 1)
    assert files.read_json(folder / "options.json")["about"]["data"]["classes"] == config["classes"]


@pytest.mark.parametrize("name", ["fast", "bert"])
def test_measuring_again_gives_the_same(here, name, tmp_path, capsys):
    summary = files.read_json(here / "runs" / name / "summary.json")
    words = ["evaluate", "--runs_dir", str(here / "runs"), "--name", name, "--per_class"]
    assert main([*words, "--batch_size", "2", "--output", str(tmp_path / "said.csv")]) == 0
    said = capsys.readouterr().out
    assert f"accuracy {summary['test_accuracy']:.4f}" in said
    assert f"matthews {summary['test_matthews']:.4f}" in said
    assert "recall  precision  F1      texts" in said
    head, *rows = (tmp_path / "said.csv").read_text().splitlines()
    assert head == "text,true,label,scores.Zahl,scores.animal,scores.tool"
    assert len(rows) == 15
    own = write(tmp_path / "own.csv", 4, "Wort,Art", 200)
    assert main([*words, "--test", str(own), "--columns", "Wort,Art"]) == 0
    assert "on 4 texts" in capsys.readouterr().out


def test_lines_in_are_lines_out(here, monkeypatch, capsys, tmp_path):
    lines = ["the cat 1", "", "zwei 4", 'a "saw"\u2028or\t two', "x" * 3000]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    words = ["predict", "--runs_dir", str(here / "runs"), "--name", "fast", "--batch_size", "2"]
    assert main(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == lines
    assert [rows[0]["label"], rows[2]["label"], rows[3]["label"]] == ["animal", "Zahl", "tool"]
    for row in rows:
        assert list(row["scores"].values()) == sorted(row["scores"].values(), reverse=True)
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert main([*words, "--text", *lines[:3], "--top", "1", "--output", str(tmp_path / "x.jsonl")]) == 0
    alone = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [row["scores"] for row in alone] == [{row["label"]: row["scores"][row["label"]]} for row in rows[:3]]


def test_a_run_goes_on_as_if_never_stopped(here, capsys):
    plain, cut = (["--name", name, *BERT, "--word_dropout", "0.2"] for name in ("whole", "cut"))
    assert main([*words(here), *plain, "--epochs", "2"]) == 0
    assert main([*words(here), *cut, "--epochs", "1", "--schedule", "constant"]) == 0
    whole = [*words(here), "--name", "whole2", *BERT, "--word_dropout", "0.2", "--epochs", "2", "--schedule", "constant"]
    assert main(whole) == 0
    assert main(["train", "--runs_dir", str(here / "runs"), "--name", "cut", "--resume", "--epochs", "2"]) == 0
    assert same(here / "runs" / "cut", here / "runs" / "whole2")
    assert not same(here / "runs" / "cut", here / "runs" / "whole")


def same(one, other):
    states = [files.read_tensors(folder / "last.safetensors") for folder in (one, other)]
    return all(torch.equal(x, states[1][key]) for key, x in states[0].items())


def test_classes_are_found_by_name(here, tmp_path, capsys):
    """In other order where a class is new; its rows of the output layer are taken along."""
    other = tmp_path / "other.csv"
    other.write_text((here / "train.csv").read_text().replace(",Zahl", ",a number"))
    data = [f"--{split}={other}" for split in ("train", "valid", "test")]
    where = ["--runs_dir", str(here / "runs"), "--tracker", "none", "--epochs", "1", "--lr", "1e-9"]
    context = ["--context", "16", "--batch_tokens", "64"]
    assert main([*words(here), "--init", "bert", *context, "--epochs", "1", "--lr", "1e-9", "--name", "again"]) == 0
    said = capsys.readouterr().out
    assert "the output layer is kept, for the classes are the same" in said
    first, again = (files.read_json(here / "runs" / name / "summary.json") for name in ("bert", "again"))
    assert again["test_accuracy"] == first["test_accuracy"]
    assert main(["train", *data, *where, "--init", "bert", *context, "--name", "third"]) == 0
    assert "a new output layer, for the weights know other classes: Zahl" in capsys.readouterr().out


def test_lora_learns_beside_frozen_weights_and_is_merged(here, capsys):
    context = ["--context", "16", "--batch_tokens", "256", "--lr", "0.02"]
    more = ["--init", "bert", "--lora_rank", "2", "--lora_targets", "query,value,up", "--freeze", "encoder1", *context]
    assert main([*words(here), *more, "--name", "refused", "--epochs", "1"]) == 0
    assert "LoRA of rank 2 in 3 layers" in capsys.readouterr().out
    more.remove("--freeze"), more.remove("encoder1")
    assert main([*words(here), *more, "--name", "lora", "--epochs", "2", "--average", "2"]) == 0
    before, after = (zoo.load(here / "runs" / name) for name in ("bert", "lora"))
    assert not has_lora(after)
    moved = {n for n, x in after.state_dict().items() if not torch.equal(x, before.state_dict()[n])}
    block = "encoder.0.{}.weight"
    inner = {block.format(f"attention.sublayer.{n}") for n in ("query", "value")} | {block.format("feedforward.sublayer.up")}
    head = {f"head.{n}.{kind}" for n in ("pooled.dense", "output") for kind in ("weight", "bias")}
    assert moved == inner | head
    assert main(["train", "--runs_dir", str(here / "runs"), "--name", "lora", "--resume", "--epochs", "3"]) == 0
    assert main(["predict", "--runs_dir", str(here / "runs"), "--name", "lora", "--text", "the cat"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["label"] == "animal"


def test_pairs_of_texts(here, tmp_path, capsys):
    """Whether two words are of one kind, which neither tells alone."""
    rows = [{"text": a, "text_pair": b, "label": a == b} for a in "abcd" for b in "abcd" for _ in range(3)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"--{split}={path}" for split in ("train", "valid", "test")]
    where = ["--runs_dir", str(tmp_path / "runs"), "--name", "pairs"]
    assert main(["train", *data, *where, *BERT, "--dim", "32", "--layers", "2", "--epochs", "1", "--tracker", "none"]) == 0
    assert "144" not in capsys.readouterr().out.split("texts")[0]
    config = files.read_json(tmp_path / "runs" / "pairs" / "config.json")
    assert (config["texts"], config["classes"]) == (2, ["False", "True"])
    assert main(["predict", *where, "--text", "a\tb", "c\tc"]) == 0
    assert "with a tab between them" in one_line(capsys, main, "predict", *where, "--text", "a\tb", "c")


TOKENIZER = train_tokenizer(["the cat saw a dog and an axe"], "word", 50)
TEXTS = st.lists(
    st.lists(st.sampled_from(["the", "cat", "saw", "a", "dog", "and", "an", "axe"]), min_size=0, max_size=7),
    min_size=4,
    max_size=9,
)


@given(TEXTS, st.integers(2, 5), st.sampled_from([0.0, 0.4]), st.sampled_from(["fasttext", "bert_small"]))
def test_gradients_of_a_batch_are_those_of_its_micro_batches(texts, parts, dropped, name):
    """By texts: however many tokens the shares have, and whatever words are dropped."""
    torch.manual_seed(0)
    small = dict(dim=8, dropout=0.0, num_classes=2, vocab_size=TOKENIZER.vocab_size)
    model = zoo.create(name, head="sequence", **small, **({} if name == "fasttext" else dict(heads=2, layers=1))).double()
    model.config |= {"context": 16}
    reader = Reader(model, TOKENIZER, name == "bert_small")
    examples = [Labelled((" ".join(text),), "ab"[n % 2]) for n, text in enumerate(texts)]
    options = TrainOptions(word_dropout=dropped, context=16, label_smoothing=0.1)
    task = TextClassification(LabelledTexts(examples, examples, examples), reader, options)
    indices = torch.arange(len(texts))

    def gradients(pieces):
        model.zero_grad()
        batches = [task.train.batch(piece, 3) for piece in pieces if len(piece)]
        units = sum(task.units(batch) for batch in batches)
        for batch in batches:
            (task.loss(model, batch)[0] / units).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, shares = gradients([indices]), gradients(indices.tensor_split(parts))
    scale = max(float(x.abs().max()) for x in whole)
    for one, other in zip(whole, shares, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * scale)  # the loss is computed in float32


def test_padding_and_neighbours_change_nothing(here):
    model, tokenizer = zoo.load(here / "runs" / "bert"), TOKENIZER
    reader = Reader(model, SimpleNamespace(pad=tokenizer.pad), True)
    row = torch.tensor([[1, 5, 6, 2]])
    padded = F.pad(row, (0, 3), value=tokenizer.pad)
    types = torch.zeros_like(padded)
    torch.testing.assert_close(called(reader, model, row, types[:, :4]), called(reader, model, padded, types))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--model", "vgg11"], "--model: vgg11 is no model that reads texts"),
        (["--model", "bert_smal"], "did you mean bert_small?"),
        (["--data", "x", "--train"], "--train needs a value"),
        (["--train", "nowhere.csv"], "nowhere.csv is not there"),
        (["--init", "nowhere"], "--init nowhere is not there"),
        (["--init", "hf:nowhere"], "--init hf:nowhere"),
        (["--lora_rank", "2"], "--lora_rank is for a model that has learnt something: give --init"),
        (["--init", "bert", "--lora_rank", "2", "--lora_targets", "querry", "--context", "16"], "--lora_targets must be one of"),
        (["--init", "bert", "--freeze", "encoder9", "--context", "16"], "--freeze must be one of"),
        (["--init", "bert"], "--context must be 16 or less for bert_small, got 128"),
        (["--batch_tokens", "100"], "--batch_tokens must be at least --context, 700, got 100"),
        (["--columns", "a"], "--columns must be a text, or two, and the label"),
        (["--columns", "review,label"], "expected columns review, label, the first line has text, label"),
        (["--layers", "2"], "fasttext takes"),
    ],
)
def test_what_is_wrong_is_one_line(here, capsys, more, named):
    assert named in one_line(capsys, main, *words(here), "--name", "b", *more)
    assert not (here / "runs" / "b").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("text,label\na,b\nc,\n", "line 3: no label"),
        ("text,label\na,b\nc\n", "line 3: no column 2, it has 1"),
        ("text,label\na,x\nb,x\nc,x\n", "there must be two classes or more"),
        ("text,kind,label\n", "no texts"),
        ("a,b,c\nd,e,f\n", "expected columns text and label, or --columns that names them, the first line has a, b, c"),
        ('text,label\n"a,b\n', "not CSV"),
    ],
)
def test_a_bad_file_is_named(here, tmp_path, capsys, content, named):
    (tmp_path / "x.csv").write_text(content)
    splits = [f"--{split}={tmp_path / 'x.csv'}" for split in ("train", "valid", "test")]
    line = one_line(capsys, main, *words(here), *splits, "--name", "b")
    assert named in line
    assert not (here / "runs" / "b").exists()


def test_a_class_that_training_lacks_is_named(here, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("text,label\na,plant\n")
    assert "valid: class 'plant' is not among" in one_line(capsys, main, *words(here), "--valid", tmp_path / "x.csv")
    where = ["--runs_dir", here / "runs", "--name", "bert", "--test", tmp_path / "x.csv"]
    assert "--test: class 'plant' is not among those of the model" in one_line(capsys, main, "evaluate", *where)
