"""What a translator is trained and measured on: said, checked before the first epoch, and known again by what it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import complaint, one_line

import zoo
from tasks import translation
from tasks.data.parallel import load_parallel, load_test
from tasks.data.tokenizer import load_tokenizer, train_tokenizer
from tasks.options import restored
from tasks.translation import TrainOptions, begin, default_name, main
from zoo import files

PAIRS = [("eins", "one"), ("zwei", "two"), ("drei", "three"), ("eins zwei", "one two"), ("zwei drei", "two three")]


def write(folder: Path, name: str, pairs: list[tuple[str, str]], endings: tuple[str, str] = ("de", "en")) -> list[str]:
    paths = [folder / f"{name}.{ending}" for ending in endings]
    for side, path in enumerate(paths):
        path.write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("corpus")
    return SimpleNamespace(folder=folder, train=write(folder, "train", PAIRS * 5), valid=write(folder, "valid", PAIRS[:4]))


def options(corpus, runs: Path, name: str = "a") -> list[str]:
    where = ["--runs_dir", str(runs), "--name", name, "--device", "cpu", "--epochs", "1", "--batch_tokens", "60"]
    return ["--train", *corpus.train, "--valid", *corpus.valid, *where, "--max_length", "20"]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", *options(corpus, folder)]) == 0
    return folder


# ------------------------------------------------------------------------------------------------------------------ identity


def task(**given):
    chosen = TrainOptions(**{"device": "cpu", **given})
    return begin(chosen, Path("nowhere"))


def test_data_is_known_by_what_it_is(corpus, tmp_path):
    """Another order, another text, another tokenizer are another set; another path is not."""
    given = dict(train=corpus.train, valid=corpus.valid, tokenizer="")
    work, model = task(**given)
    found = work.identity
    assert {"source": "de", "target": "en", "normalize": "nfc"}.items() <= found.items()
    assert found["tokenizer"] == work.tokenizer.fingerprint == model.config["tokenizer"]
    assert found["train"]["pairs"] == 25
    assert found["valid"]["pairs"] == 4
    assert "test" not in found
    assert json.loads(json.dumps(found)) == found
    elsewhere = write(tmp_path, "moved", PAIRS * 5)
    assert task(**given | dict(train=elsewhere))[0].identity == found
    work.tokenizer.save(tmp_path / "tokenizer.json")
    fixed = given | dict(tokenizer=str(tmp_path / "tokenizer.json"))
    prints = {task(**fixed)[0].identity["train"]["fingerprint"]}
    for pairs in (PAIRS * 4, [*PAIRS * 4, *PAIRS[::-1]], [*PAIRS * 4, *[(b, a) for a, b in PAIRS]]):
        other = task(**fixed | dict(train=write(tmp_path, "other", pairs)))[0].identity
        assert other["valid"] == found["valid"]
        prints.add(other["train"]["fingerprint"])
    assert len(prints) == 4
    tested = task(**fixed, test=corpus.valid)[0].identity
    assert tested["test"] == tested["valid"] == found["valid"]
    assert task(**given | dict(level="char"))[0].identity["tokenizer"] != found["tokenizer"]


def test_a_prepared_folder_keeps_its_fingerprint(corpus, tmp_path):
    given = ["--train", *corpus.train, "--valid", *corpus.valid]
    prints = []
    for name, more in (("one", []), ("two", []), ("three", ["--train", *corpus.valid])):
        assert main(["prepare", *given, *more, "--out", str(tmp_path / name)]) == 0
        work, _ = task(prepared=str(tmp_path / name))
        prints.append(work.identity["train"]["fingerprint"])
        assert work.identity["source"] == "de"
    assert prints[0] == prints[1] != prints[2]
    meta = files.read_json(tmp_path / "one" / "meta.json")
    meta.pop("fingerprints")
    meta.pop("normalize")
    files.write_json(tmp_path / "one" / "meta.json", meta)  # as they were before there were fingerprints
    old = task(prepared=str(tmp_path / "one"))[0].identity
    assert old["train"]["fingerprint"] not in prints
    assert old["normalize"] == "none"


def test_a_sample_of_the_pairs(corpus, tmp_path):
    """The same from text and from a prepared folder, for the tokenizer too; validation stays whole."""
    given = dict(train=corpus.train, valid=corpus.valid, max_examples=7)
    work, _ = task(**given)
    assert (work.train.size, work.valid.size) == (7, 4)
    work.tokenizer.save(tmp_path / "tokenizer.json")
    whole = ["--train", *corpus.train, "--valid", *corpus.valid, "--tokenizer", str(tmp_path / "tokenizer.json")]
    assert main(["prepare", *whole, "--out", str(tmp_path / "prepared")]) == 0
    prepared, _ = task(prepared=str(tmp_path / "prepared"), max_examples=7)
    assert prepared.train.size == 7
    same = [[side.tolist() for side in prepared.data.train[n]] for n in range(7)]
    assert same == [list(map(list, example)) for example in work.data.train]
    batches = [task.train.batch(torch.arange(7), 0) for task in (work, prepared)]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


@pytest.mark.parametrize(
    ("endings", "more", "languages"),
    [
        (("de", "en"), {}, ["de", "en"]),
        (("txt", "out"), {}, []),
        (("txt", "out"), dict(target="ja"), ["ja"]),
        (("de", "en"), dict(source="fr"), ["fr", "en"]),
    ],
)
def test_no_language_is_invented(tmp_path, endings, more, languages):
    paths = write(tmp_path, "a", PAIRS, endings)
    chosen = TrainOptions(train=paths, valid=paths, device="cpu", **more)
    assert default_name(chosen).startswith("-".join(["transformer_small-a", *languages, "20"]))
    work, model = begin(chosen, tmp_path / "none")
    assert model.config.get("languages", []) == languages
    assert [x for x in (work.identity["source"], work.identity["target"]) if x] == languages


def test_languages_of_our_own_data():
    assert (TrainOptions().source, TrainOptions().target) == ("de", "en")
    assert (TrainOptions(source="fr").source, TrainOptions(source="fr").target) == ("fr", "en")
    assert TrainOptions(data="cmudict").source is None
    assert TrainOptions(data="hf:wmt14/cs-en").source == "cs"
    assert default_name(TrainOptions(data="cmudict")).startswith("transformer_small-cmudict-20")


# --------------------------------------------------------------------------------------------------- before the first epoch


def test_a_split_without_usable_pairs_is_known_first(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(translation, "Translation", None)
    for pairs, words in (([("", ""), ("a", "")], "2 with an empty side"), ([("x" * 99, "a")], "1 over-long")):
        bad = write(tmp_path, "bad", pairs)
        for split, verb in (("valid", "validate"), ("test", "test"), ("train", "train")):
            more = ["--tokenizer", tmp_path / "tokenizer.json"]
            train_tokenizer(["eins"], "bpe", 270).save(tmp_path / "tokenizer.json")
            error = one_line(capsys, main, "train", *options(corpus, tmp_path / "runs"), f"--{split}", *bad, *more)
            assert f"no pairs are left to {verb} on: 0 pairs" in error
            assert words in error
    assert not (tmp_path / "runs").exists()


def test_a_pair_that_no_batch_holds_is_shown(corpus, tmp_path, capsys):
    long = write(tmp_path, "long", [*PAIRS * 5, ("eins zwei drei vier fünf sechs", "x")])
    given = [
        *options(corpus, tmp_path / "runs"),
        "--train",
        *long,
        "--level",
        "char",
        "--max_length",
        "100",
        "--batch_tokens",
        "25",
    ]
    error = one_line(capsys, main, "train", *given)
    where = f"({long[0]} and {long[1]}, line 26)"
    assert f"pair 26 to train on {where}, 'eins zwei drei vier fünf sechs', has 31 tokens, more than the 25 of a whole" in error
    assert "raise --batch_tokens to 31, or skip such pairs by --max_length 25" in error
    assert main(["train", *given, "--max_length", "25"]) == 0


@pytest.mark.parametrize("more", [{}, dict(max_examples=2)])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_long_pair_is_named_by_its_line(tmp_path, prepared, more):
    """Whatever was skipped before it, and of a sample; but not of a sample of a prepared folder, which has no lines."""
    path = tmp_path / "a.tsv"
    path.write_text("source\ttarget\n\t\na\tb\n\na long one that comes first\tx\na long one that comes later\ty\n")
    given = dict(train=[str(path)], valid=[str(path)], level="char", max_length=50)
    if prepared:
        words = ["--train", str(path), "--valid", str(path), "--level", "char", "--max_length", "50"]
        assert main(["prepare", *words, "--out", str(tmp_path / "p")]) == 0
        given = dict(prepared=str(tmp_path / "p"))
    found = complaint(task, **given, **more, batch_tokens=20)
    line = 5 if "first" in found else 6
    place = "" if prepared and more else f" ({path}, line {line})"
    assert found.startswith(f"pair {line - 3} to train on{place}, " if not more else "pair ")
    assert f"to train on{place}, 'a long one that comes {'first' if line == 5 else 'later'}', has 28 tokens, more than" in found


def test_without_a_test_set_that_is_told_once(runs, corpus, tmp_path, capsys):
    assert main(["train", *options(corpus, tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.count("test: none given, so that the validation set is tested on") == 1
    assert "0 pairs" not in told
    summary = files.read_json(tmp_path / "a" / "summary.json")
    assert summary["test_bleu"] == summary["best_valid_bleu"]
    assert "tok:13a" in summary["bleu_signature"]


def test_only_transformers_are_offered(corpus, tmp_path, capsys):
    for name, near in (("vgg11_bn", ""), ("transformer_smal", "did you mean 'transformer_small'")):
        error = one_line(capsys, main, "train", *options(corpus, tmp_path / "runs"), "--model", name)
        assert (
            "--model must be one of transformer_base, transformer_big, transformer_small, seq2seq_bahdanau, seq2seq_luong, got"
            in error
        )
        assert near in error
        assert "resnet" not in error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--columns", "2"], "--columns must be two"),
        (["--max_examples", "0"], "--max_examples must be 1 or more"),
        (["--normalize", "nfc", "--dataset_path", "x"], "--train and --dataset_path name the same data"),
        (["--bleu_tokenize", "ja-mecab"], "--bleu_tokenize ja-mecab needs packages"),
        (["--init", "nowhere"], "nowhere is not there"),
        (["--init", "hf:nowhere"], "hf:nowhere is not there"),
        (["--prepared", "nowhere"], "nowhere is no prepared folder"),
        (["--source", "en"], "--target must differ"),
    ],
)
def test_bad_options_are_one_line(corpus, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.setattr("tasks.scores.find_spec", lambda name: None)
    assert words in one_line(capsys, main, "train", *options(corpus, tmp_path / "runs"), *more)
    assert not (tmp_path / "runs").exists()


def test_home_expands(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(corpus.folder))
    names = ["~/train.de", "~/train.en"]
    found = TrainOptions(train=names, valid=names, dataset_path="~", tokenizer="~/t", prepared="~/p", init="~/run")
    assert found.train == corpus.train
    assert [found.dataset_path, found.tokenizer, found.init] == [str(corpus.folder / x) for x in ("", "t", "run")]


# -------------------------------------------------------------------------------------------- normal forms and old runs


def test_text_is_normalised_by_default(tmp_path, capsys):
    """In training, validation and test; a run keeps the form."""
    apart, composed = [("cafe\u0301", "cafe\u0301")] * 3, [("caf\u00e9", "caf\u00e9")] * 3
    paths = [write(tmp_path, name, pairs) for name, pairs in (("apart", apart), ("composed", composed))]
    found = {
        (n, form): load_parallel(TrainOptions(train=path, valid=path, test=path, normalize=form, level="char"))
        for n, path in enumerate(paths)
        for form in ("nfc", "none")
    }
    assert found[0, "nfc"].identity() == found[1, "nfc"].identity() == found[1, "none"].identity()
    one, other = found[0, "none"].identity(), found[1, "none"].identity()
    assert all(one[split] != other[split] for split in ("train", "valid", "test", "tokenizer"))
    assert task(train=paths[0], valid=paths[0])[0].identity["normalize"] == "nfc"
    prepared = ["--train", *paths[0], "--valid", *paths[0], "--normalize", "nfkc", "--out", tmp_path / "p"]
    assert main(["prepare", *map(str, prepared)]) == 0
    work, _ = task(prepared=str(tmp_path / "p"))
    assert work.options.normalize == "nfkc"
    error = one_line(capsys, main, "train", "--prepared", tmp_path / "p", "--normalize", "nfc", "--runs_dir", tmp_path)
    assert "was prepared with nfkc" in error


def test_a_run_from_before_there_were_forms(runs, corpus, tmp_path):
    """It goes on without one, and is evaluated without."""
    (tmp_path / "a").mkdir()
    for path in (runs / "a").iterdir():
        if path.is_file():
            (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    saved = files.read_json(tmp_path / "a" / "options.json")
    assert saved["normalize"] == "nfc"
    saved.pop("normalize")
    files.write_json(tmp_path / "a" / "options.json", saved)
    chosen = restored(TrainOptions, saved | {"resume": True}, tmp_path)
    work, _ = begin(chosen, tmp_path / "a")
    assert work.options.normalize == "none"
    chosen.normalize = "none"
    assert load_test(chosen, work.tokenizer, {}).fingerprint == work.data.valid.fingerprint


# ---------------------------------------------------------------------------------------------------------------- --init


def test_init_of_a_run_brings_its_tokenizer(runs, corpus, tmp_path, capsys):
    """And refuses another."""
    other = write(tmp_path, "other", [("Haus", "house"), ("Baum", "tree")] * 9)
    given = [*options(corpus, tmp_path / "runs"), "--train", *other, "--lr", "1e-9", "--warmup", "0", "--weight_decay", "0"]
    assert main(["train", *given, "--init", str(runs / "a")]) == 0, capsys.readouterr().err
    assert load_tokenizer(tmp_path / "runs" / "a").fingerprint == load_tokenizer(runs / "a").fingerprint
    one, two = (files.read_tensors(path / "best.safetensors") for path in (runs / "a", tmp_path / "runs" / "a"))
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    train_tokenizer(["Haus"], "bpe", 270).save(tmp_path / "tokenizer.json")
    more = ["--name", "b", "--init", runs / "a"]
    error = one_line(capsys, main, "train", *given, *more, "--tokenizer", tmp_path / "tokenizer.json")
    assert f"--tokenizer {tmp_path / 'tokenizer.json'}: --init {runs / 'a'} was trained with another one" in error
    assert main(["prepare", "--train", *other, "--valid", *other, "--out", str(tmp_path / "prepared")]) == 0
    error = one_line(capsys, main, "train", *given, *more, "--prepared", tmp_path / "prepared")
    assert "was prepared with another tokenizer than the model's" in error
    error = one_line(capsys, main, "train", *given, *more, "--model", "transformer_base")
    assert "is a transformer_small, --model is transformer_base" in error
    (tmp_path / "bare").mkdir()
    for name in ("best.safetensors", "config.json"):
        (tmp_path / "bare" / name).write_bytes((runs / "a" / name).read_bytes())
    bare = ["train", *given, "--name", "b", "--init", tmp_path / "bare"]
    assert "was trained with another tokenizer, which it lacks" in one_line(capsys, main, *bare)
    assert "--level char" in one_line(capsys, main, "train", *given, *more, "--level", "char")
    same = ["--name", "c", "--init", str(runs / "a"), "--tokenizer", str(runs / "a" / "tokenizer.json")]
    assert main(["train", *given, *same]) == 0, capsys.readouterr().err


def test_a_model_that_is_no_translator_is_refused(runs, tmp_path, capsys):
    model = zoo.create("resnet20", num_classes=2)
    zoo.save(model, tmp_path / "a")
    load_tokenizer(runs / "a").save(tmp_path / "a" / "tokenizer.json")
    assert "no translator" in one_line(capsys, main, "translate", "--runs_dir", tmp_path, "--name", "a", "--input", __file__)


# -------------------------------------------------------------------------------------------------- device and precision


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_scores_of_training_are_in_its_precision(corpus, precision):
    work, model = task(train=corpus.train, valid=corpus.valid, precision=precision)
    seen = []
    model.encoder[0].feedforward.sublayer.up.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    work.score(model.eval())
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
