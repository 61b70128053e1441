"""Recurrent models by `--model`: they learn, are used and refused as those of other families."""

from __future__ import annotations

import json

import pytest
from command import one_line

import zoo
from tasks import text_generation, translation
from zoo import files

WORDS = {"eins": "one", "zwei": "two", "drei": "three"}


def test_a_language_model_learns_and_writes(tmp_path, capsys):
    for n in range(40):
        (tmp_path / f"{n}.txt").write_text("the cat sat on the mat\na dog ran to the cat\n" * 3 + f"{n}\n")
    sizes = [
        "--dim",
        "24",
        "--layers",
        "1",
        "--context",
        "32",
        "--vocab_size",
        "280",
        "--epochs",
        "3",
        "--batch_size",
        "4",
        "--lr",
        "0.01",
    ]
    where = ["--name", "a", "--runs_dir", str(tmp_path / "runs")]
    given = ["train", "--train", str(tmp_path), "--model", "lstm_small", *sizes, "--tracker", "none", "--device", "cpu", *where]
    assert text_generation.main(given) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs" / "a" / "metrics.jsonl").read_text().splitlines()]
    bits = [row["valid_bits_per_byte"] for row in rows]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < 0.8 * bits[0]
    model = zoo.load(tmp_path / "runs" / "a")
    assert model.config["arguments"] == {"vocab_size": 280, "layers": 1, "dim": 24}
    capsys.readouterr()
    texts = []
    for _ in range(2):
        assert text_generation.main(["generate", *where, "--prompt", "the c", "--max_new_tokens", "50", "--seed", "3"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 20
    assert text_generation.main(["evaluate", *where]) == 0
    summary = files.read_json(tmp_path / "runs" / "a" / "summary.json")
    assert f"bits per byte {summary['test_bits_per_byte']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("name", zoo.names(zoo.EncoderDecoder)[-2:])
def test_a_translator_is_trained_and_used(name, tmp_path, capsys):
    """It goes on, translates with beams and a picture of its attention, is measured; it is neither compiled nor Marian's."""
    (tmp_path / "corpus").mkdir()
    texts = [f"{one} {two} {three} {one}" for one in WORDS for two in WORDS for three in WORDS] * 3
    for split in ("train", "valid"):
        (tmp_path / "corpus" / f"{split}.de").write_text("".join(f"{text}\n" for text in texts))
        lines = (" ".join(WORDS[word] for word in text.split()) for text in texts)
        (tmp_path / "corpus" / f"{split}.en").write_text("".join(f"{line}\n" for line in lines))
    where = ["--runs_dir", str(tmp_path / "runs"), "--name", "a", "--device", "cpu"]
    data = ["--dataset_path", str(tmp_path / "corpus"), "--source", "de", "--target", "en"]
    train = ["train", *where, *data, "--model", name, "--batch_tokens", "64", "--level", "word", "--lr", "0.01"]
    assert translation.main([*train, "--epochs", "2"]) == 0
    assert translation.main([*train, "--epochs", "3", "--resume"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs" / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[2]["valid_loss"] < 0.8 * rows[0]["valid_loss"]
    assert type(zoo.load(tmp_path / "runs" / "a")) is zoo.kind_of(name)
    (tmp_path / "in").write_text("drei\n\nzwei eins drei zwei\n")
    use = [*where, "--beam", "3", "--input", str(tmp_path / "in")]
    picture, out = tmp_path / "attention.png", tmp_path / "out"
    assert translation.main(["translate", *use, "--output", str(out), "--attention", str(picture)]) == 0
    assert out.read_text().split("\n")[1::2] == ["", ""]
    assert out.read_text().count("\n") == 3
    assert picture.stat().st_size > 1000
    assert translation.main(["evaluate", *where]) == 0
    capsys.readouterr()
    words = "--compile: model must be a Transformer for its decoding to be compiled, got a Seq2Seq"
    assert words in one_line(capsys, translation.main, "translate", *use, "--compile")
    words = f"{name} is not Marian's"
    assert words in one_line(capsys, translation.main, "export", *where[:4], "--out", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
