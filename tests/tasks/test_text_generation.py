from __future__ import annotations

import json
import shutil

import pytest
import torch
from command import one_line
from tokenizers import ByteLevelBPETokenizer

import zoo
from tasks.continuing import generate
from tasks.data.documents import Document, compressors, load, split_up, stdlib
from tasks.data.tokenizer import load_tokenizer
from tasks.text_generation import main
from zoo import files
from zoo.generation.sampling import Sampler

SENTENCES = ["the cat sat on the mat", "a dog ran to the cat", "naïve café, 日本語 und ẞ", "def f(x): return x + 1"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for n in range(60):
        (folder / f"{n}.txt").write_text("\n".join(SENTENCES[(n + k) % 4] for k in range(5)) + f"\n{n}\n")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\xff")
    return folder


def small(texts, runs, *more):
    sizes = ["--dim", "24", "--layers", "1", "--context", "32", "--vocab_size", "300", "--epochs", "3", "--batch_size", "4"]
    return ["train", "--train", str(texts), "--runs_dir", str(runs), *sizes, "--tracker", "none", *more]


@pytest.fixture(scope="module")
def runs(texts, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert main([*small(texts, runs, "--name", "a")]) == 0
    return runs


def test_a_run_learns_and_leaves_what_there_is_to_see(runs):
    folder = runs / "a"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    bits = [row["valid_bits_per_byte"] for row in rows]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < bits[0] < 8
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["test_bits_per_byte"] < 8
    assert summary["compressors"].keys() == {"gzip", "bz2", "xz", "xz after the training text"}
    assert {"curves.png", "index.html", "tokenizer.json", "best.safetensors"} <= {path.name for path in folder.iterdir()}
    about = json.loads((folder / "options.json").read_text())["about"]
    assert "1 of 61 files are no text" in str(about["told"])
    assert sum(about["data"][split]["documents"] for split in ("train", "valid", "test")) == 60


def written(capsys, runs, *more):
    assert main(["generate", "--name", "a", "--runs_dir", str(runs), "--max_new_tokens", "40", *more]) == 0
    return capsys.readouterr().out


def test_a_prompt_is_gone_on_from(runs, capsys):
    first = written(capsys, runs, "--prompt", "the c")
    assert first.startswith("the c")
    assert len(first) > 10
    assert written(capsys, runs, "--prompt", "the c") == first
    assert written(capsys, runs, "--prompt", "the c", "--seed", "1") != first
    greedy = written(capsys, runs, "--prompt", "the c", "--greedy")
    assert written(capsys, runs, "--prompt", "the c", "--greedy", "--seed", "5") == greedy
    assert "cat" not in written(capsys, runs, "--prompt", "the c", "--greedy", "--bad_words", "a", "at", "cat")[5:]
    assert len(written(capsys, runs, "--prompt", "x", "--count", "3").split(80 * "-")) == 4


def test_a_text_longer_than_the_context_goes_on(runs):
    """And the pieces, which are whole characters, are the text; a prompt may be longer than the context, too."""
    model, tokenizer = zoo.load(runs / "a"), load_tokenizer(runs / "a" / "tokenizer.json")
    for prompt in ("", "naïve 日本語 " * 20):
        pieces = list(
            generate(model, tokenizer, prompt, context=32, max_new_tokens=100, choose=Sampler(seed=3), min_new_tokens=100)
        )
        assert len(pieces) > 20
        text = "".join(pieces)
        assert len(tokenizer.encode(text)) > 32
        assert all(piece.isascii() or len(piece.encode()) > 1 for piece in pieces)


def test_measuring_again_gives_the_same(runs, texts, capsys, tmp_path):
    summary = json.loads((runs / "a" / "summary.json").read_text())
    assert main(["evaluate", "--name", "a", "--runs_dir", str(runs), "--output", str(tmp_path / "bits.jsonl")]) == 0
    assert f"bits per byte {summary['test_bits_per_byte']:.4f}" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "bits.jsonl").read_text().splitlines()]
    bits = sum(row["bits_per_byte"] * row["bytes"] for row in rows) / sum(row["bytes"] for row in rows)
    assert bits == pytest.approx(summary["test_bits_per_byte"])
    other = tmp_path / "other.txt"
    other.write_text("the cat sat on the mat\n")
    assert main(["evaluate", "--name", "a", "--runs_dir", str(runs), "--test", str(other), "--stride", "32"]) == 0
    assert "1 texts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "transformer_base"], "--model transformer_base is no language model"),
        (["--model", "lama_small"], "did you mean llama_small"),
        (["--stride", "33"], "--stride must be at most --context, 32, got 33"),
        (["--train", "nowhere"], "nowhere is not there"),
        (["--tokenizer", "nowhere"], "nowhere is not there"),
        (["--data", "wikitext", "--train"], "--train needs a value"),
        (["--batch_size", "0"], "--batch_size must be 1 or more"),
        (["--model", "gru_small", "--mask_documents"], "--mask_documents is for models with attention, gru_small has a state"),
    ],
)
def test_what_is_wrong_is_one_line(more, words, texts, tmp_path, capsys):
    assert words in one_line(capsys, main, *small(texts, tmp_path, "--name", "b", *more))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfea\0", "no UTF-8"), (b"a\0b", "zero bytes"), (b"  \n", "no text in it")],
)
def test_a_file_that_is_no_text_is_named(content, words, tmp_path, capsys):
    (tmp_path / "x.txt").write_bytes(content)
    line = one_line(capsys, main, *small(tmp_path / "x.txt", tmp_path))
    assert words in line
    assert "x.txt" in line


def test_texts_in_json_lines(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n{"text": " "}\n{"text": "two", "id": 3}\n{"text": "a\u2028b"}\n')
    data = load("", [str(rows)], [str(rows)], [str(rows)], "none")
    assert data.train == [Document("rows.jsonl:1", "one"), Document("rows.jsonl:3", "two"), Document("rows.jsonl:4", "a\u2028b")]
    rows.write_text('{"text": "one"}\n{"words": "two"}\n')
    assert 'line 2: expected an object with "text"' in one_line(capsys, main, *small(rows, tmp_path))


def test_like_texts_stay_together_and_few_are_cut():
    documents = [Document(f"{n}", f"text {n // 2}") for n in range(200)]
    split = split_up(documents)
    seen = {name: {d.text for d in part} for name, part in split.items()}
    assert sum(map(len, split.values())) == 200
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["valid"]
    book = Document("book", "".join(f"line {n}\n" for n in range(100)))
    parts = split_up([book])
    assert "".join(d.text for name in ("train", "valid", "test") for d in parts[name]) == book.text
    assert [len(parts[name][0].text.splitlines()) for name in ("train", "valid", "test")] == [90, 5, 5]


def test_the_standard_library_is_there():
    found = stdlib()
    assert {"ast.py", "asyncio/queues.py"} <= {document.name for document in found}
    assert not any(document.name.startswith(("test/", "idlelib/", "encodings/")) for document in found)
    assert sum(len(document.text) for document in found) > 5_000_000


def test_a_compressor_that_has_read_the_text_needs_little():
    text = [Document("a", "".join(chr(97 + n * n % 26) for n in range(3000)))]
    bits = compressors(text, text)
    assert bits["xz after the training text"] < 0.2 < bits["xz"] < 8


# -------------------------------------------------------------------------------------------------------- from other weights


@pytest.fixture(scope="module")
def published(texts, tmp_path_factory):
    """A GPT-2 as it is published, small: no token for padding."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(path) for path in texts.glob("*.txt")], vocab_size=300, special_tokens=["<|endoftext|>"])
    tokenizer.save(str(folder / "made.json"))
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    model = zoo.create("gpt_small", vocab_size=size, dim=24, heads=2, layers=2, max_positions=48).eval()
    zoo.to_huggingface(model, folder / "made.json", folder / "gpt2")
    return folder / "gpt2"


def fine_tuned(texts, runs, *more):
    sizes = ["--context", "32", "--epochs", "2", "--batch_size", "4"]
    return [
        "train",
        "--train",
        str(texts),
        "--runs_dir",
        str(runs),
        *sizes,
        "--tracker",
        "none",
        "--name",
        "new",
        *map(str, more),
    ]


def test_fine_tuning_of_what_is_published(texts, published, tmp_path, capsys):
    """With its tokenizer, which has no padding; then from that run, by LoRA, which is merged."""
    assert main(fine_tuned(texts, tmp_path, "--init", f"hf:{published}", "--lr", "0.003")) == 0
    rows = [json.loads(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["valid_bits_per_byte"] < rows[0]["valid_bits_per_byte"]
    config = files.read_json(tmp_path / "new" / "config.json")
    assert (config["model"], config["arguments"]["layers"]) == ("gpt2", 2)
    assert load_tokenizer(tmp_path / "new").vocab_size == config["arguments"]["vocab_size"]
    assert main(["generate", "--name", "new", "--runs_dir", str(tmp_path), "--max_new_tokens", "9", "--prompt", "the"]) == 0
    before = files.read_tensors(tmp_path / "new" / "best.safetensors")
    shutil.move(tmp_path / "new", tmp_path / "first")
    lora = ["--init", "first", "--lora_rank", 2, "--lr", "0.01"]
    capsys.readouterr()
    assert main(fine_tuned(texts, tmp_path, *lora)) == 0
    assert "LoRA of rank 2 in 4 layers: 384 parameters learn" in capsys.readouterr().out
    after = files.read_tensors(tmp_path / "new" / "best.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert moved == {name for name in before if name.endswith(("query.weight", "value.weight"))}


def test_a_fine_tuned_run_goes_on_without_its_beginning(texts, published, tmp_path):
    begin = tmp_path / "begin"
    shutil.copytree(published, begin)
    words = fine_tuned(texts, tmp_path, "--init", f"hf:{begin}", "--epochs", "1")
    assert main(words) == 0
    shutil.rmtree(begin)
    assert main([*words, "--epochs", "2", "--resume"]) == 0
    assert len((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--init", "hf:nowhere"], "--init hf:nowhere: nowhere is not there"),
        (["--init", "none"], "--init none is not there: a run, one of its .safetensors files or hf:PATH is expected"),
        (["--lora_rank", "2"], "--lora_rank is for a model that has learnt something: give --init"),
        (["--init", "hf:{}", "--context", "64"], "--context must be 48 or less for gpt2, got 64"),
        (["--init", "hf:{}", "--lora_rank", "2", "--lora_targets", "nothing"], "--lora_targets"),
        (["--init", "hf:{}", "--freeze", "nothing"], "--freeze must be one of embedding"),
        (["--init", "hf:{}", "--model", "llama_small"], "another architecture"),
    ],
)
def test_beginnings_that_cannot_be(texts, published, tmp_path, capsys, more, error):
    assert error in one_line(capsys, main, *fine_tuned(texts, tmp_path, *(str(word).format(published) for word in more)))
    assert not (tmp_path / "new").exists()


def test_a_beginning_without_its_tokenizer(texts, published, tmp_path, capsys):
    shutil.copytree(published, tmp_path / "begin")
    (tmp_path / "begin" / "tokenizer.json").unlink()
    words = fine_tuned(texts, tmp_path, "--init", f"hf:{tmp_path / 'begin'}")
    assert "has no tokenizer.json: give --tokenizer" in one_line(capsys, main, *words)
    assert main([*words, "--tokenizer", str(published / "tokenizer.json"), "--epochs", "1"]) == 0
