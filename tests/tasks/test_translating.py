"""From a model to lines: their number, their scores, the forms they are written in, precision, and attention by characters."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
import torch
from command import one_line
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

import zoo
from tasks import plots, translating
from tasks.data.tokenizer import TextTokenizer, train_tokenizer
from tasks.tables import encoder
from tasks.translating import Hypothesis, as_lines, as_rows, characters, membership, search
from tasks.translation import main
from zoo import files

TEXTS = ["eins zwei drei", "Hund und Katze 🙂", "Größe", "日本語"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(TEXTS, "bpe", 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Some of its sentences end, others go on to the last step."""
    torch.manual_seed(1)
    made = zoo.create("transformer_small", vocab_size=tokenizer.vocab_size, dim=16, heads=2, hidden_dim=24, layers=1)
    with torch.no_grad():
        for p in made.parameters():
            torch.nn.init.normal_(p, std=0.3)
        made.embedding.table.weight[tokenizer.eos] *= 3
    return made.eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model, tokenizer):
    """A run "a" of that model, as training leaves it."""
    folder = tmp_path_factory.mktemp("runs")
    model.config["tokenizer"] = tokenizer.fingerprint
    zoo.save(model, folder / "a")
    tokenizer.save(folder / "a" / "tokenizer.json")
    files.write_json(folder / "a" / "options.json", {"normalize": "nfc", "max_length": 40, "source": "de", "target": "en"})
    return folder


# ------------------------------------------------------------------------------------------------------- lines out = lines in

WILD = st.lists(st.one_of(st.text(max_size=4), st.sampled_from(["\n", "\r", "\u2028", "\t"])), max_size=6).map("".join)


@given(texts=st.lists(WILD, max_size=5), scored=st.booleans())
def test_a_translation_is_a_line_whatever_it_holds(texts, scored):
    written = [encoder("lines", {})(text) for text in as_lines([[Hypothesis(text, -0.5, -1.5)] for text in texts], scored)]
    assert written == [("-0.500000\t-1.500000\t" if scored else "") + " ".join(text.splitlines()) + "\n" for text in texts]


def test_a_hypothesis_is_a_row():
    """Lines and ranks count from 1; JSON has no infinity."""
    found = [[Hypothesis("a", -0.5, -1.5), Hypothesis("", float("-inf"), float("-inf"))], [Hypothesis("b")]]
    assert [[*row.values()] for row in as_rows(["s", "t"], found)] == [
        [1, 1, "s", "a", -0.5, -1.5],
        [1, 2, "s", "", None, None],
        [2, 1, "t", "b", 0.0, 0.0],
    ]
    assert [*next(as_rows(["s"], found[:1]))] == ["line", "rank", "source", "translation", "score", "log_probability"]


def feed(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def use(runs, *more: object) -> list[str]:
    return [str(x) for x in ("translate", "--runs_dir", runs, "--name", "a", "--device", "cpu", "--max_length", 20, *more)]


def test_standard_input_is_utf8_whatever_the_locale(runs, monkeypatch, capsysbinary):
    feed(monkeypatch, "\ufeffGröße\r\n\n日本語\u2028 x".encode())
    assert main(use(runs, "--format", "jsonl")) == 0
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.decode().splitlines()]
    assert [row["source"] for row in rows] == ["Größe", "", "日本語\u2028 x"]
    assert [row["line"] for row in rows] == [1, 2, 3]
    assert rows[1] == {"line": 2, "rank": 1, "source": "", "translation": "", "score": 0.0, "log_probability": 0.0}
    for content, words in (
        (b"good\ncaf\xe9\n", b"standard input, line 2: not UTF-8 (invalid continuation byte at byte 4): convert it to UTF-8"),
        ("Größe\n".encode("utf-16"), b"standard input is UTF-16: convert it to UTF-8, such as by iconv -f UTF-16 -t UTF-8"),
    ):
        feed(monkeypatch, content)
        assert main(use(runs)) == 2
        assert capsysbinary.readouterr().err == b"error: " + words + b"\n"


def test_input_is_normalised_as_the_training_text_was(runs, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        translating, "search", lambda model, tokenizer, texts, **o: [seen.append(t) or [Hypothesis(t)] for t in texts]
    )
    feed(monkeypatch, " Gro\u0308\u00dfe \n".encode())
    assert main(use(runs)) == 0
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes((runs / "a" / name).read_bytes())
    feed(monkeypatch, " Gro\u0308\u00dfe \n".encode())
    assert main(use(tmp_path)) == 0  # a run from before there were forms
    assert seen == ["Gr\u00f6\u00dfe", "Gro\u0308\u00dfe"]


# ------------------------------------------------------------------------------------------------------------ scores, n-best


@pytest.mark.parametrize("penalty", [1.0, 0.6])
def test_scores_are_sums_of_log_probabilities(model, tokenizer, penalty):
    """Against the model's own probabilities of the tokens, with the one that ends them."""
    texts, kept = TEXTS[:3], []
    decode = tokenizer.target.decode_batch
    tokenizer.decode_batch = lambda rows: kept.append([list(row) for row in rows]) or decode(rows)
    try:
        found = search(model, tokenizer, texts, beam=3, nbest=3, length_penalty=penalty, longest=9, batch_size=1)
    finally:
        del tokenizer.decode_batch
    assert {tokenizer.eos in row for rows in kept for row in rows} == {True, False}
    order = sorted(range(3), key=lambda n: len(tokenizer.encode(texts[n])))
    for n, rows in zip(order, kept, strict=True):
        source = torch.tensor([[*tokenizer.encode(texts[n]), tokenizer.eos]])
        assert [one.score for one in found[n]] == sorted((one.score for one in found[n]), reverse=True)
        for row, one in zip(rows, found[n], strict=True):
            ids = row[: row.index(tokenizer.eos) + 1] if tokenizer.eos in row else row
            with torch.no_grad():
                logits = model(source, torch.tensor([[tokenizer.bos, *ids[:-1]]]))[0].log_softmax(-1)
            total = logits[torch.arange(len(ids)), ids].sum().item()
            assert one.log_probability == pytest.approx(total, rel=1e-4)
            assert one.score == pytest.approx(total / len(ids) ** penalty, rel=1e-4)


def test_greedy_with_scores_writes_the_same(model, tokenizer):
    plain, scored = (search(model, tokenizer, TEXTS, longest=9, scored=flag) for flag in (False, True))
    assert [one[0].text for one in plain] == [one[0].text for one in scored]
    assert all(one[0].log_probability < 0 for one in scored)


def test_the_best_of_several_is_the_translation(model, tokenizer):
    several = search(model, tokenizer, TEXTS, beam=4, nbest=3, longest=9)
    assert [len(one) for one in several] == [3] * 4
    assert [one[:1] for one in several] == search(model, tokenizer, TEXTS, beam=4, longest=9)
    assert all(len({hypothesis.text for hypothesis in one}) > 1 for one in several)


def test_forms_and_scores_of_the_command(runs, tmp_path, capsys):
    (tmp_path / "in").write_text("eins\n\nGröße\n")
    common = ["--input", tmp_path / "in", "--beam", 3]

    def written(name: str, *more: object) -> str:
        assert main(use(runs, *common, "--output", tmp_path / name, *more)) == 0, capsys.readouterr().err
        return (tmp_path / name).read_text()

    plain = written("out").splitlines()
    assert len(plain) == 3
    several = written("many", "--nbest", 2).splitlines()
    assert several[::2] == plain
    assert several[2:4] == ["", ""]
    scored = [line.split("\t") for line in written("scored", "--nbest", 2, "--scores").splitlines()]
    assert [line[2] for line in scored] == several
    assert all(float(score) >= float(total) for score, total, _ in scored)
    rows = [json.loads(line) for line in written("a.jsonl", "--nbest", 2).splitlines()]
    assert [(row["line"], row["rank"]) for row in rows] == [(n, r) for n in (1, 2, 3) for r in (1, 2)]
    assert [row["translation"] for row in rows] == several
    assert [row["score"] for row in rows] == [float(score) for score, _, _ in scored]
    table = list(csv.reader(io.StringIO(written("a.tsv", "--nbest", 2)), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert table[1][:4] == ["1", "1", "eins", several[0]]
    with (tmp_path / "a.tsv").open() as file:
        lines = [line.rstrip("\n").split("\t") for line in file]
    written("a.csv", "--nbest", 2)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [*csv.reader(file)] == lines
    assert written("b.tsv", "--format", "lines") == written("out")
    assert written("b", "--format", "tsv", "--nbest", 2) == written("a.tsv", "--nbest", 2)


def test_greedy_search_has_one_best(runs, tmp_path, capsys):
    (tmp_path / "in").write_text("eins\n")
    for more in ([], ["--beam", 1]):
        assert "--nbest 2 needs --beam 2 or more, got 1" in one_line(
            capsys, main, *use(runs, "--input", tmp_path / "in", "--nbest", 2, *more)
        )


def test_what_cannot_be_written_is_known_first(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(zoo, "load", None)  # nothing is loaded
    (tmp_path / "in").write_text("eins\n")
    for more, words in (
        (["--nbest", 4, "--beam", 3], "--nbest 4 needs --beam 4 or more, got 3"),
        (["--output", tmp_path / "none" / "out"], f"the folder {tmp_path / 'none'} is not there"),
        (["--output", tmp_path], f"--output {tmp_path} is a folder: give a file"),
        (["--input", tmp_path / "none"], f"--input {tmp_path / 'none'} is not there"),
        (["--input", tmp_path], f"--input {tmp_path} is a folder"),
        (["--attention", tmp_path / "a.jpg"], "--attention must end in .png"),
        (["--attention", "-"], "--attention must end in .png"),
        (["--attention", tmp_path / "none" / "a.png"], "--attention"),
        (["--batch_size", 0], "--batch_size must be 1 or more"),
    ):
        assert main(use(runs, "--input", tmp_path / "in", *more)) == 2
        assert words in capsys.readouterr().err
    for more, word in (
        (["--output", tmp_path / "a.txt"], "--output must end in"),
        (["--output", tmp_path / "none" / "a.tsv"], "--output"),
        (["--columns", "2,4"], "--columns is about --test"),
    ):
        assert main(["evaluate", "--runs_dir", str(runs), "--name", "a", *map(str, more)]) == 2
        assert word in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- device and precision


def test_bfloat16_is_what_the_model_computes_in(runs, tmp_path, monkeypatch):
    """For every command; on the CPU as well."""
    (tmp_path / "in.de").write_text("eins\n")
    (tmp_path / "in.en").write_text("one\n")
    load, seen = zoo.load, []

    def watched(path):
        model = load(path)
        model.encoder[0].feedforward.sublayer.up.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        return model

    monkeypatch.setattr(zoo, "load", watched)
    test = ["evaluate", "--runs_dir", runs, "--name", "a", "--device", "cpu", "--test", tmp_path / "in.de", tmp_path / "in.en"]
    drawn = ["--attention", tmp_path / "attention.png"]
    for command in (use(runs, "--input", tmp_path / "in.de", "--output", tmp_path / "out", *drawn), [str(x) for x in test]):
        for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            seen.clear()
            assert main([*command, "--precision", precision]) == 0
            assert set(seen) == {dtype}
    assert not torch.is_autocast_enabled("cpu")


def test_evaluate_writes_what_it_measured(runs, tmp_path, capsys):
    sources, targets = ["eins", " zwei ", "", "eins", "x " * 60], ["one", "two", "three", "a", "b"]
    (tmp_path / "t.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(sources, targets, strict=True)))
    common = ["evaluate", "--runs_dir", str(runs), "--name", "a", "--device", "cpu", "--test", str(tmp_path / "t.tsv")]
    assert main([*common, "--output", str(tmp_path / "out.jsonl"), "--bleu_tokenize", "char"]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "tok:char" in told
    assert "test: 3 pairs; skipped 1 with an empty side and 1 over-long ones" in told
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["source"], row["references"]) for row in rows] == [("eins", ["one"]), ("zwei", ["two"]), ("eins", ["a"])]
    assert rows[0]["translation"] == rows[2]["translation"]
    assert rows[0].keys() == {"source", "references", "translation", "exact_match", "bleu", "chrf"}
    assert main([*common, "--output", str(tmp_path / "out.tsv")]) == 0
    assert "tok:13a" in capsys.readouterr().out
    assert (tmp_path / "out.tsv").read_text().startswith("source\treferences\ttranslation\texact_match\tbleu\tchrf\neins\tone\t")
    assert main([*common, "--output", "-"]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["translation"] for line in captured.out.splitlines()] == [row["translation"] for row in rows]
    assert "tok:13a" in captured.err


# ----------------------------------------------------------------------------------------------------------------- attention


@given(text=st.text(min_size=1, max_size=12))
def test_pieces_are_whole_characters(text):
    """Of a tokenizer whose tokens are single bytes."""
    tokenizer = train_tokenizer(["a"], "bpe", 260)
    ids = tokenizer.encode(text)
    found = characters(tokenizer, ids)
    assert sum(size for _, size in found) == len(ids)
    assert [size for _, size in found] == [len(c.encode()) for c in text] or "\ufffd" in text
    assert all(piece in (c, c.strip()) for (piece, _), c in zip(found, text, strict=True)) or "\ufffd" in text


def test_pieces_of_words_and_unknown_ones(tokenizer):
    words = train_tokenizer(["a b c"], "word", 50)
    assert characters(words, words.encode("b x a")) == [("b", 1), ("<unk>", 1), ("a", 1)]
    assert "".join(piece for piece, _ in characters(tokenizer, tokenizer.encode("Katze日本"))) == "Katze日本"
    assert characters(tokenizer, []) == []
    cut = tokenizer.encode("日本")[:-1]  # a model may stop within a character
    assert sum(size for _, size in characters(tokenizer, cut)) == len(cut)
    inner = Tokenizer(models.WordLevel({"a": 0, "##b": 1, "<unk>": 2}, unk_token="<unk>"))
    inner.decoder = decoders.WordPiece()
    assert characters(TextTokenizer(inner), [0, 1, 0]) == [("a", 1), ("b", 1), ("a", 1)]


def test_attention_is_added_up_where_it_is_read_and_averaged_where_it_is_written(model, monkeypatch, tmp_path):
    tokenizer = train_tokenizer(["a"], "bpe", 260)
    torch.manual_seed(0)
    model = zoo.create("transformer_small", vocab_size=tokenizer.vocab_size, dim=16, heads=2, hidden_dim=24, layers=1).eval()
    drawn = []
    monkeypatch.setattr(plots, "attention", lambda *arguments: drawn.append(arguments) or [])
    translating.draw_attention(model, tokenizer, "aé日", "🙂b", tmp_path / "a.png")
    ((weights, source, target, _),) = drawn
    assert source == ["a", "é", "日", "</s>"]
    assert target == ["🙂", "b", "</s>"]
    assert weights.shape == (3, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert membership([2, 1]).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("file", "changed", "words"),
    [
        ("options.json", dict(normalize=-1), "--normalize must be of type str, got -1"),
        ("options.json", dict(normalize="nfz"), "--normalize must be one of nfc, nfkc, none"),
        ("options.json", dict(data=None), "--data must be of type str, got None"),
        ("options.json", dict(max_length="x"), "--max_length must be of type int, got 'x'"),
        ("options.json", dict(max_length=0), "--max_length must be 1 or more"),
        ("options.json", dict(train=["a", 1]), "--train must be of type list, got ['a', 1]"),
        ("options.json", dict(target={}), "--target must be of type str | None, got {}"),
        ("config.json", dict(start="x"), "decoding must start with a token from 0 to 279, got 'x'"),
        ("config.json", dict(start=280), "got 280"),
        ("config.json", dict(tokenizer="other"), "is not the tokenizer that the model was trained with"),
    ],
)
def test_damaged_runs_are_one_line(runs, tmp_path, capsys, file, changed, words):
    (tmp_path / "a").mkdir()
    for path in (runs / "a").iterdir():
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    files.write_json(tmp_path / "a" / file, files.read_json(runs / "a" / file) | changed)
    (tmp_path / "in").write_text("eins\n")
    assert words in one_line(capsys, main, *use(tmp_path, "--input", tmp_path / "in"))
    assert words in one_line(capsys, main, "evaluate", "--runs_dir", tmp_path, "--name", "a", "--device", "cpu")
