"""Marian's translators: a folder of transformers read, used, trained on and given back, against transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import complaint, one_line
from published import PAIRS, WORDS, make, ours, theirs

import zoo
from tasks import marian
from tasks.data.tokenizer import load_tokenizer
from tasks.translating import search
from tasks.translation import main
from zoo import files
from zoo.transformer import names_of_marian

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses", "ignore:.*resume_download:FutureWarning")

TEXTS = ["eins zwei drei", "ein großer Hund", "", " Katze  und Maus ", "🙂 fünf", ">>fr<< eins", "<unk> </s>", "x" * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with pytest.warns(UserWarning, match="sacremoses"):
        return make(tmp_path_factory.mktemp("marian"))


def translations(model: Any, tokenizer: Any, texts: list[str], beams: int, longest: int) -> list[str]:
    """By `generate`, in one batch; nothing forced."""
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    options = dict(max_new_tokens=longest, max_length=None, num_beams=beams, forced_eos_token_id=None)
    with torch.no_grad():
        return tokenizer.batch_decode(model.generate(**batch, **options), skip_special_tokens=True)


def test_tokens_are_theirs(folder):
    _, tokenizer = ours(folder)
    _, reference = theirs(folder)
    plain = [text for text in TEXTS if "</s>" not in text]  # there four characters, with them the end
    assert [[*ids, tokenizer.eos] for ids in tokenizer.encode_batch(plain)] == reference(plain)["input_ids"]
    targets = ["one two three", "a big dog", "", " cat  and mouse "]
    assert [[*ids, 0] for ids in tokenizer.target.encode_batch(targets)] == reference(text_target=targets)["input_ids"]
    assert tokenizer.encode("fünf") != tokenizer.target.encode("fünf")
    for texts, side in ((plain, tokenizer), (targets, tokenizer.target)):
        rows = side.encode_batch(texts)
        assert side.decode_batch(rows) == reference.batch_decode(rows, skip_special_tokens=True)
    assert tokenizer.encode(TEXTS[6])[-1] != tokenizer.eos
    assert tokenizer.bos == tokenizer.pad == load_tokenizer(folder).bos == reference.pad_token_id


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_logits_are_theirs(folder, dtype):
    model, reference = ours(folder)[0].to(dtype), theirs(folder)[0].to(dtype)
    size = model.embedding.table.num_embeddings
    source, target = torch.randint(0, size - 1, (3, 7)), torch.randint(0, size, (3, 5))
    real = torch.arange(7) < torch.tensor([[7], [3], [5]])
    with torch.no_grad():
        expected = reference(input_ids=source, attention_mask=real.long(), decoder_input_ids=target).logits
        torch.testing.assert_close(model(source, target, real), expected)


@pytest.mark.parametrize("beams", [1, 4])
def test_translations_are_theirs(folder, beams):
    """Padding is forbidden without making anything else likelier."""
    (model, tokenizer), (reference, other) = ours(folder), theirs(folder)
    texts = [source for source, _ in PAIRS[::9]]
    found = search(model.double(), tokenizer, texts, beam=beams, longest=20)
    assert [one[0].text for one in found] == translations(reference.double(), other, texts, beams, 20)
    assert len({one[0].text for one in found}) > 3


def write_corpus(folder: Path) -> list[str]:
    for split, pairs in (("train", PAIRS[::3]), ("valid", PAIRS[1::40])):
        for side, language in enumerate(("de", "en")):
            (folder / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    paths = [str(folder / f"{split}.{language}") for split in ("train", "valid") for language in ("de", "en")]
    where = ["--device", "cpu", "--runs_dir", str(folder / "runs"), "--name", "tuned"]
    return ["--train", *paths[:2], "--valid", *paths[2:], *where]


def test_a_run_trains_on_and_gives_the_folder_back(folder, tmp_path, capsys):
    """One epoch; the run goes on, is used, and exported, and transformers loads that and translates the same."""
    copy = tmp_path / "published"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    settings = files.read_json(copy / "generation_config.json") | {"num_beams": 3, "max_length": 15, "length_penalty": 0.6}
    files.write_json(copy / "generation_config.json", settings)
    options = write_corpus(tmp_path)
    start = [*options, "--init", f"hf:{copy}", "--epochs", "1", "--lr", "0.001", "--batch_tokens", "200", "--max_length", "30"]
    assert main(["train", *start]) == 0, capsys.readouterr().err
    told = "decoding as generation_config.json says: num_beams 3, length_penalty 0.6, max_length 15, forced_eos_token_id 0, bad_"
    assert capsys.readouterr().out.count(told) == 1
    for path in copy.iterdir():
        path.unlink()  # a run that goes on needs it no more
    run, use = tmp_path / "runs" / "tuned", ["--runs_dir", str(tmp_path / "runs"), "--name", "tuned"]
    assert main([*use, "--resume"]) == 0, capsys.readouterr().err
    config = files.read_json(run / "config.json")
    assert config["languages"] == ["de", "en"]
    assert config["arguments"]["activation"] == "silu"

    texts, lines = [*(source for source, _ in PAIRS[1::40]), " ".join(WORDS)], tmp_path / "in"
    lines.write_text("".join(f"{text}\n" for text in texts))
    ways: dict[str, tuple[list[str], dict[str, int]]] = {
        "own": ([], {}), "several": (["--nbest", "2"], {}), "greedy": (["--beam", "1"], {"num_beams": 1}),
        "beams": (["--beam", "4", "--max_length", "40"], {"num_beams": 4, "max_length": 41}),
        "long": (["--length_penalty", "2"], {"length_penalty": 2}),
    }  # fmt: skip
    for name, (words, _) in ways.items():
        capsys.readouterr()
        assert main(["translate", *use, "--input", str(lines), "--output", str(tmp_path / name), *words]) == 0
        assert (told in capsys.readouterr().err) == ("--beam" not in words)
    assert main(["evaluate", *use]) == 0, capsys.readouterr().err
    found, summary = capsys.readouterr(), files.read_json(run / "summary.json")
    assert f"bleu {summary['test_bleu']:.4f}" in found.out
    assert told in found.err
    assert summary["test_bleu"] == summary["best_valid_bleu"]
    assert main(["export", *use, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err

    reference, tokenizer = theirs(tmp_path / "out")
    before, after = (files.read_tensors(x)["model.shared.weight"] for x in (folder, tmp_path / "out"))
    assert not torch.equal(before, after)
    weights = names_of_marian(zoo.load(run), 128).export(zoo.load(run))
    assert all(torch.equal(x, weights[name]) for name, x in reference.state_dict().items() if "positions" not in name)
    batch, different = tokenizer(texts, return_tensors="pt", padding=True), set()
    for name, (words, changed) in ways.items():
        with torch.no_grad():
            expected = tokenizer.batch_decode(reference.generate(**batch, **changed), skip_special_tokens=True)
        assert (tmp_path / name).read_text().splitlines()[:: 2 if "--nbest" in words else 1] == expected
        if name == "own":
            assert [row["translation"] for row in json.loads((run / "examples.json").read_text())] == expected[:-1]
        different.add(tuple(expected))
    assert len(different) > 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in folder.iterdir()}
    for name in ("vocab.json", "tokenizer_config.json", "config.json"):
        assert files.read_json(tmp_path / "out" / name) == files.read_json(folder / name)
    assert files.read_json(tmp_path / "out" / "generation_config.json") == settings
    again = ours(tmp_path / "out")[1]
    assert again.fingerprint == load_tokenizer(run).fingerprint == config["tokenizer"]
    assert "exists already" in one_line(capsys, main, "export", *use, "--out", tmp_path / "out")


def test_a_tokenizer_json_will_do(folder, tmp_path, capsys):
    """In place of vocab.json and SentencePiece's models; what decoding starts with is what config.json says."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    size = len(load_tokenizer(folder).inner.vocabulary)
    words = ["</s>", "<unk>", "<s>", *WORDS, *WORDS.values()]
    vocabulary = {word: n for n, word in enumerate([*words, *(f"<{n}>" for n in range(size - len(words) - 1)), "<pad>"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    published = tmp_path / "published"
    published.mkdir()
    inner.save(str(published / "tokenizer.json"))
    for name in ("config.json", "model.safetensors"):
        (published / name).write_bytes((folder / name).read_bytes())
    options = [
        *write_corpus(tmp_path),
        "--init",
        f"hf:{published}",
        "--epochs",
        "1",
        "--batch_tokens",
        "200",
        "--max_length",
        "20",
    ]
    assert main(["train", *options]) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "tuned"
    assert files.read_json(run / "config.json")["start"] == size - 1 != load_tokenizer(run).bos
    use = ["--runs_dir", str(tmp_path / "runs"), "--name", "tuned"]
    assert main(["evaluate", *use]) == 0, capsys.readouterr().err
    summary = files.read_json(run / "summary.json")
    assert f"bleu {summary['test_bleu']:.4f}" in capsys.readouterr().out
    assert main(["export", *use, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert load_tokenizer(tmp_path / "out").fingerprint == load_tokenizer(published).fingerprint


def test_a_prepared_folder_of_its_tokens(folder, tmp_path, capsys):
    """The same training as from the text."""
    options = write_corpus(tmp_path)
    more = ["--init", f"hf:{folder}", "--epochs", "1", "--batch_tokens", "200", "--max_length", "30"]
    assert main(["prepare", *options[:6], "--tokenizer", str(folder), "--out", str(tmp_path / "prepared")]) == 0
    assert main(["train", *options, *more]) == 0, capsys.readouterr().err
    prepared = [*options[6:-1], "prepared", "--prepared", str(tmp_path / "prepared")]
    assert main(["train", *prepared, *more]) == 0, capsys.readouterr().err
    one, other = (files.read_tensors(tmp_path / "runs" / name / "best.safetensors") for name in ("tuned", "prepared"))
    assert all(torch.equal(one[key], other[key]) for key in one)


# ----------------------------------------------------------------------------------------------------------- complaints


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(decoder_layers=3), "encoder_layers and decoder_layers must be the same, got 2 and 3"),
        (dict(decoder_attention_heads=4), "encoder_attention_heads and decoder_attention_heads"),
        (dict(decoder_ffn_dim=32), "encoder_ffn_dim and decoder_ffn_dim"),
        (dict(activation_function="gelu"), "activation_function must be one of swish, silu, relu, got gelu"),
        (dict(activation_function={}), "activation_function must be one of swish, silu, relu, got {}"),
        (dict(normalize_embedding=True), "normalize_embedding must be False"),
        (dict(normalize_before=True), "normalize_before must be False"),
        (dict(add_final_layer_norm=True), "add_final_layer_norm must be False"),
        (dict(scale_embedding=False), "scale_embedding must be True"),
        (dict(static_position_embeddings=False), "static_position_embeddings must be True"),
        (dict(share_encoder_decoder_embeddings=False), "share_encoder_decoder_embeddings must be True"),
        (dict(tie_word_embeddings=False), "tie_word_embeddings must be True"),
        (dict(decoder_vocab_size=5), "decoder_vocab_size must be vocab_size"),
        (dict(model_type="bart"), "model_type must be marian"),
        (dict(d_model="16"), "d_model must be a whole number"),
        (dict(d_model=None), "d_model must be a whole number"),
        (dict(pad_token_id=3), "pad_token_id must be the tokenizer's"),
        (dict(eos_token_id=3), "eos_token_id must be the tokenizer's"),
        (dict(decoder_start_token_id=10_000), "must be below"),
        (dict(vocab_size=77, decoder_vocab_size=77), "tokens, but the model's vocab_size is 77"),
    ],
)
def test_what_our_transformer_cannot_be(folder, tmp_path, changed, words):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    files.write_json(tmp_path / "config.json", files.read_json(folder / "config.json") | changed)
    assert words in complaint(marian.read, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json", "source.spm", "target.spm"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_damaged_folders_are_one_line(folder, tmp_path, capsys, name, damage):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage != "missing":
        (tmp_path / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    options = ["--runs_dir", tmp_path / "runs", "--data", "cldr", "--pairs", "100", "--init", f"hf:{tmp_path}"]
    error = one_line(capsys, main, "train", *options)
    assert name in error or str(tmp_path) in error
    assert not (tmp_path / "runs").exists()


def test_options_that_an_init_excludes(folder, tmp_path, capsys):
    options = ["--runs_dir", tmp_path / "runs", "--pairs", "100", "--init", f"hf:{folder}"]
    assert "is a transformer_base" in one_line(capsys, main, "train", *options, "--model", "transformer_small")
    assert "--vocab_size 300" in one_line(capsys, main, "train", *options, "--vocab_size", "300")
    assert "is not there, or no folder" in one_line(capsys, main, "train", "--init", f"hf:{tmp_path / 'none'}")
