"""The translator as its users meet it: train, kill, resume, translate in order, and every complaint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command import one_line
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

import zoo
from tasks.data.parallel import Held, ParallelData
from tasks.data.tokenizer import load_tokenizer, train_tokenizer
from tasks.translation import TrainOptions, Translation, main, scores, translate
from zoo import files
from zoo.deployment import compiled_decoding
from zoo.pretrained.fast_tokenizer import SPELLINGS

TASK = "tasks.translation"
PAIRS = [("eins", "one"), ("zwei", "two"), ("drei", "three"), ("eins zwei", "one two"), ("zwei drei", "two three")]


def small(runs: Path, name: str = "a") -> list[str]:
    """A few batches of numbers in words, with dropout on."""
    return f"""--dataset_path {runs / "corpus"} --source de --target en --batch_tokens 24 --epochs 2
               --max_length 20 --device cpu --runs_dir {runs} --name {name}""".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A corpus of two languages, and a run "a" that was trained on it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "corpus").mkdir()
    for split, pairs in (("train", PAIRS * 5), ("valid", PAIRS[:4]), ("test", PAIRS[1:])):
        for side, language in enumerate(("de", "en")):
            (folder / "corpus" / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    assert main(["train", *small(folder)]) == 0
    return folder


# ----------------------------------------------------------------------------------------------------------- training


def test_a_run_leaves_what_the_readme_says(runs):
    folder = runs / "a"
    summary = files.read_json(folder / "summary.json")
    scores = {"exact_match", "bleu", "chrf"}
    assert {f"{split}_{name}" for split in ("valid", "test") for name in scores} <= summary.keys()
    assert {"seconds", "sentences_per_second", "valid_loss", "best_valid_bleu"} <= summary.keys()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    for name in ("best.safetensors", "last.safetensors", "config.json", "options.json", "tokenizer.json", "curves.png"):
        assert (folder / name).stat().st_size > 0, name
    assert zoo.load(folder).config["tokenizer"] == load_tokenizer(folder).fingerprint


@pytest.mark.processes
def test_a_killed_run_resumes_to_the_same_bits(runs, launch):
    options = [*small(runs, "killed"), "--checkpoint_every", "2"]
    for step in (4, 3):
        died = launch("train", *options, *(["--resume"] if step == 3 else []), task=TASK, blow=("step", step))
        assert died.returncode == -9, died.stderr
    for name, more in (("killed", ["--resume"]), ("whole", [])):
        done = launch("train", *small(runs, name), "--checkpoint_every", "2", *more, task=TASK)
        assert done.returncode == 0, done.stderr
    for name in ("last.safetensors", "best.safetensors"):
        one, other = (files.read_tensors(runs / run / name) for run in ("killed", "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.processes
def test_two_processes_give_the_metrics_of_one(runs, launch):
    found = []
    for name, ranks in (("one", 1), ("two", 2)):
        options = [*small(runs, name), "--dropout", "0", "--ema", "0.9", "--optimizer", "sgd", "--lr", "0.01"]
        done = launch("train", *options, task=TASK, ranks=ranks)
        assert done.returncode == 0, done.stderr
        rows = (runs / name / "metrics.jsonl").read_text().splitlines()
        found.append([value for row in map(json.loads, rows) for value in row.values()])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def task(smoothing: float = 0.1, **options: Any) -> Translation:
    tokenizer = train_tokenizer((text for pair in PAIRS for text in pair), "bpe", 300)
    encoded = [tuple(tokenizer.encode_batch(pair)) for pair in PAIRS]
    data = ParallelData(encoded, Held.of(PAIRS), Held.of(PAIRS), tokenizer)
    return Translation(data, TrainOptions(label_smoothing=smoothing, max_length=50, **(options or {"batch_tokens": 40})))


def test_a_batch_has_as_many_sentences_as_are_asked_for():
    """However long they are, unless tokens are limited too."""
    assert TrainOptions().batch_tokens == 1024
    assert sorted(map(len, task(batch_size=2).train.batches(0))) == [1, 2, 2]
    assert [*map(len, task(batch_size=9).train.batches(0))] == [5]
    assert max(map(len, task(batch_size=9, batch_tokens=8).train.batches(0))) < 5


def test_padding_takes_no_part_in_the_loss():
    """The sum over a padded batch is the sum over its rows alone, label smoothing included."""
    work = task()
    torch.manual_seed(0)
    model = zoo.create("transformer_small", vocab_size=work.data.tokenizer.vocab_size, dropout=0.0).double().train()
    batch = work.train.batch(torch.arange(5), 0)
    whole, metrics = work.loss(model, batch)
    rows = [work.train.batch(torch.tensor([i]), 0) for i in range(5)]
    assert (batch[2] == work.tokenizer.pad).any()
    parts = [work.loss(model, row) for row in rows]
    assert whole.item() == pytest.approx(sum(loss.item() for loss, _ in parts), rel=1e-6)
    assert metrics["token_accuracy"] == sum(m["token_accuracy"] for _, m in parts)
    assert work.units(batch) == sum(map(work.units, rows)) == sum(len(ids) + 1 for _, ids in work.data.train)
    assert whole.item() / work.units(batch) == pytest.approx(math.log(model.embedding.table.num_embeddings), rel=0.5)
    source, target, labels = rows[0]
    smooth = F.cross_entropy(model(source, target)[0], labels[0], reduction="sum", label_smoothing=0.1)
    assert parts[0][0].item() == pytest.approx(smooth.item(), rel=1e-6)


def test_every_pair_is_seen_once_an_epoch_in_another_order():
    work = task()
    epochs = [[i for batch in work.train.batches(epoch) for i in batch.tolist()] for epoch in (0, 1, 0)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(5))
    assert epochs[0] == epochs[2] != epochs[1]


def test_scores_take_any_reference():
    found = scores(["a b c d", "x"], [["z", "a b c d"], ["y"]])
    assert found["exact_match"] == 0.5
    assert found["bleu"] > 50
    assert scores(["a b c d"], [["a b c d"]]) == pytest.approx({"exact_match": 1.0, "bleu": 100.0, "chrf": 100.0})


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))


spoken = st.lists(st.sampled_from(["AH0", "AH1", "K", "T"]), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.one_of(spoken, st.just([])), st.lists(spoken, min_size=1, max_size=3)), min_size=1, max_size=3))
def test_phoneme_errors_are_counted_against_the_nearest_pronunciation(words):
    found = scores([" ".join(got) for got, _ in words], [[" ".join(right) for right in rights] for _, rights in words], "cmudict")
    nearest = [min(rights, key=lambda right, got=got: edits(got, right)) for got, rights in words]
    errors = sum(edits(got, right) for (got, _), right in zip(words, nearest, strict=True))
    assert found["phoneme_error_rate"] == pytest.approx(errors / sum(map(len, nearest)))
    wrong = sum(got not in rights for got, rights in words) / len(words)
    assert found == pytest.approx({**found, "word_error_rate": wrong, "exact_match": 1 - wrong})


# ------------------------------------------------------------------------------------------------------------ using it


def test_translations_come_in_order_whatever_the_batches(runs):
    model, tokenizer = zoo.load(runs / "a"), load_tokenizer(runs / "a")
    sentences = ["drei", "eins zwei drei eins", "", 9 * "eins drei "]
    for options in ({"beam": 1}, {"beam": 3}):
        alone = [translate(model, tokenizer, [s], longest=75, **options)[0] for s in sentences]
        for batch_size in (2, 64):
            assert translate(model, tokenizer, sentences, batch_size=batch_size, longest=75, **options) == alone


def test_lines_in_lines_out(runs, tmp_path, capsys, monkeypatch):
    lines, out, picture = tmp_path / "lines.de", tmp_path / "out.en", tmp_path / "attention.png"
    lines.write_text("eins\n\nzwei drei\n")
    options = ["translate", "--name", "a", "--runs_dir", runs, "--beam", "2"]
    assert main([str(a) for a in [*options, "--input", lines, "--output", out, "--attention", picture]]) == 0
    written = out.read_text()
    assert written.count("\n") == 3
    assert written.split("\n")[1] == ""
    assert picture.stat().st_size > 1000


def test_a_compiled_model_writes_the_same_lines(runs, capsys, monkeypatch):
    """But for the compiler: what it makes of a translator is held against the model by `test_compiled_decoding`."""
    programs = []

    def eager(program, *arguments, rows):
        programs.append(program)
        structure = tree_structure(arguments)
        return lambda tensors: tree_leaves(program(*tree_unflatten(tensors, structure)))

    monkeypatch.setattr(compiled_decoding, "compiled", eager)
    (runs / "some").write_text("eins\n\nzwei drei\n")
    found = []
    for more in ([], ["--compile"]):
        assert not programs
        assert main(["translate", "--name=a", f"--runs_dir={runs}", "--max_length=12", f"--input={runs / 'some'}", *more]) == 0
        found.append(capsys.readouterr().out)
    assert programs
    assert found[0] == found[1]
    assert found[0].count("\n") == 3


def test_evaluate_tells_its_signature(runs, capsys):
    assert main(["evaluate", "--name", "a", "--runs_dir", str(runs), "--max_length", "20"]) == 0
    told = capsys.readouterr().out
    summary = files.read_json(runs / "a" / "summary.json")
    assert f"bleu {summary['test_bleu']:.4f}" in told
    assert "nrefs:1|case:mixed" in told


def test_a_prepared_folder_trains_the_same(runs, tmp_path, capsys):
    out = tmp_path / "prepared"
    languages = ["--source", "de", "--target", "en"]
    assert main(["prepare", "--dataset_path", str(runs / "corpus"), *languages, "--out", str(out)]) == 0
    assert "train: 25 pairs" in capsys.readouterr().out
    options = [*small(runs, "prepared")[6:], "--prepared", str(out)]
    assert main(["train", *options]) == 0
    one, other = (files.read_tensors(runs / run / "last.safetensors") for run in ("a", "prepared"))
    assert all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------------------------ tokenizers of others


def bert_like(texts: list[str]) -> Tokenizer:
    """Pieces of words; [PAD] and its like at ids that no module constant knows."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    inner.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False))
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return inner


def gpt_like(texts: list[str]) -> Tokenizer:
    """Pieces of bytes and one special token, the last: no padding, nothing unknown."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False))
    inner.add_special_tokens(["<|endoftext|>"])
    return inner


@pytest.mark.parametrize("like", [bert_like, gpt_like])
def test_a_run_trains_on_a_tokenizer_of_others(runs, tmp_path, like):
    """Its special tokens are where they are, for the embedding, the loss, decoding and pictures."""
    inner = like([text for pair in PAIRS for text in pair])
    inner.save(str(tmp_path / "tokenizer.json"))
    size = inner.get_vocab_size()
    name = like.__name__
    assert main(["train", *small(runs, name), "--tokenizer", str(tmp_path / "tokenizer.json"), "--epochs", "3"]) == 0
    model, kept = zoo.load(runs / name), load_tokenizer(runs / name)
    if like is bert_like:
        assert [kept.special[kind] for kind in SPELLINGS] == [4, 1, 2, 0, 1, 2, 3]
        assert kept.vocab_size == size
    else:
        assert kept.special == {"pad": size, "bos": size - 1, "eos": size - 1}
        assert kept.vocab_size == size + 1
    assert model.embedding.table.padding_idx == kept.pad
    summary = files.read_json(runs / name / "summary.json")
    assert summary["valid_token_accuracy"] > 0.4
    (tmp_path / "in").write_text("eins zwei\n")
    options = ["--name", name, "--runs_dir", runs, "--input", tmp_path / "in", "--output", tmp_path / "out"]
    assert main([str(a) for a in ["translate", *options, "--attention", tmp_path / "attention.png"]]) == 0
    assert "<" not in (tmp_path / "out").read_text().replace("<|endoftext|>", "")
    assert main(["evaluate", "--name", name, "--runs_dir", str(runs), "--max_length", "20"]) == 0


def test_a_tokenizer_that_cannot_end_a_sentence_is_refused(runs, tmp_path, capsys):
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "<unk>": 2, "eins": 3}, unk_token="<unk>"))
    inner.save(str(tmp_path / "tokenizer.json"))
    error = one_line(capsys, main, "train", *small(runs, "bad"), "--tokenizer", tmp_path / "tokenizer.json")
    assert f"{tmp_path / 'tokenizer.json'} has no eos token: expected one of </s>, <eos>" in error


# ----------------------------------------------------------------------------------------------------------- complaints


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label_smoothing", "1"], "--label_smoothing"),
        (["--batch_tokens", "0"], "--batch_tokens"),
        (["--batch_tokens", "2"], "more than the 2 of a whole batch"),
        (["--target", "de"], "--target must differ"),
        (["--source", "gremlin"], "corpus"),
        (["--model", "transformer_smal"], "did you mean 'transformer_small'"),
        (["--data", "shells", "--dataset_path", ""], "--data must be"),
        (["--data", "cldr", "--dataset_path", "", "--source", "xx"], "unknown locale"),
        (["--tokenizer", "nowhere.json"], "nowhere.json"),
        (["--data", "cmudict"], "--train and --dataset_path take its place"),
        (["--name", "a"], "exists already"),
    ],
)
def test_bad_options_are_one_line(runs, capsys, options, words):
    before = sorted(path.name for path in runs.iterdir())
    assert words in one_line(capsys, main, "train", *small(runs, "bad"), *options)
    assert sorted(path.name for path in runs.iterdir()) == before


def test_files_of_unequal_length_give_both_counts(runs, tmp_path, capsys):
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    (tmp_path / "a.en").write_text("one\n")
    both = [tmp_path / "a.de", tmp_path / "a.en"]
    error = one_line(capsys, main, "train", "--train", *both, "--valid", *both, "--runs_dir", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert "2 lines" in error
    assert "1" in error


def test_a_foreign_tokenizer_is_refused(runs, tmp_path, capsys):
    for name in ("best.safetensors", "config.json", "options.json"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes((runs / "a" / name).read_bytes())
    (tmp_path / "in").write_text("eins\n")
    options = ["translate", "--name", "run", "--runs_dir", tmp_path, "--input", tmp_path / "in"]
    size = load_tokenizer(runs / "a").vocab_size
    train_tokenizer(["ein anderer Text"] * 3, "bpe", size + 100).save(tmp_path / "run" / "tokenizer.json")
    assert "vocab_size" in one_line(capsys, main, *options) or "trained with" in one_line(capsys, main, *options)


def test_an_over_long_line_is_named(runs, tmp_path, capsys):
    (tmp_path / "in").write_text("eins\n" + "eins " * 400 + "\n")
    error = one_line(capsys, main, "translate", "--name", "a", "--runs_dir", runs, "--input", tmp_path / "in")
    assert "line 2" in error
    assert main(["translate", "--name", "a", "--runs_dir", str(runs), "--input", str(tmp_path / "none")]) == 2
