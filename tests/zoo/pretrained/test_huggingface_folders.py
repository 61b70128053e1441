"""Folders with a model and its tokenizer, on which `pipeline` and `generate` work; and what is refused before one is there."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, pipeline
from word_tokenizers import READS, WRITES, words

import zoo
from layers import masks
from zoo import files
from zoo.generation import decoding
from zoo.pretrained.huggingface import to_huggingface

SMALL = dict(vocab_size=19, dim=8, heads=2, hidden_dim=12, layers=1)
TEXTS = ["a zoo in which nothing is taken", "all can fly"]
LABELS = ["no", "yes", "perhaps"]


def drawn(name, **arguments):
    model = zoo.create(name, **SMALL | arguments).eval()
    torch.manual_seed(2)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model


def rows_of(tokenizer, texts, side):
    """tokens and mask, of tokenizers' own ids."""
    rows = [torch.tensor(tokenizer.encode(text).ids) for text in texts]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    return tokens, masks.allowed_from_lengths(torch.tensor([len(row) for row in rows]), tokens.shape[1], side)


@pytest.mark.parametrize("name", ["gpt_small", "llama_small"])
def test_text_is_generated_from_a_folder(name, tmp_path):
    model, tokenizer = drawn(name, **(dict(max_positions=20) if name == "gpt_small" else {})), words(WRITES)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = to_huggingface(model, tmp_path / "tokenizer.json", tmp_path / "new")
    assert (made.config.pad_token_id, made.config.bos_token_id, made.config.eos_token_id) == (0, 2, 3)
    tokens, mask = rows_of(tokenizer, TEXTS, "left")
    found = decoding.greedy(model.start(capacity=15), tokens, prompt_mask=mask, max_new_tokens=6, stop=(3,))
    expected = [text + tokenizer.decode(row) for text, row in zip(TEXTS, found.tolist(), strict=True)]
    writer = pipeline("text-generation", str(tmp_path / "new"), batch_size=2)
    written = writer(TEXTS, max_new_tokens=6, do_sample=False)
    assert [row["generated_text"] for (row,) in written] == expected
    assert len(set(expected)) == 2
    kept = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert kept.padding_side == "left"
    assert kept.model_max_length == (20 if name == "gpt_small" else kept.model_max_length)


@pytest.mark.parametrize("name", ["bert_small", "roberta_base", "distilbert_base", "roformer_base"])
def test_what_reads_is_used_from_a_folder(name, tmp_path):
    tokenizer, arguments = words(READS), dict(padding=0, max_positions=30)
    model = drawn(name, head="masked", **arguments)
    to_huggingface(model, tokenizer, tmp_path / "masked")
    tokens = torch.tensor([tokenizer.encode("a [MASK] can fly").ids])
    best = model(tokens)[0, 2].argmax().item()
    filled = pipeline("fill-mask", str(tmp_path / "masked"))("a [MASK] can fly")
    assert filled[0]["token"] == best
    model = drawn(name, head="sequence", num_classes=3, **arguments)
    model.config["classes"] = LABELS
    to_huggingface(model, tokenizer, tmp_path / "sequence")
    tokens, mask = rows_of(tokenizer, TEXTS, "right")
    found = pipeline("text-classification", str(tmp_path / "sequence"), batch_size=2)(TEXTS)
    expected = model(tokens, mask).softmax(-1).max(-1)
    assert [row["label"] for row in found] == [LABELS[n] for n in expected.indices]
    torch.testing.assert_close(torch.tensor([row["score"] for row in found]), expected.values)
    model = drawn(name, head="tokens", num_classes=3, **arguments)
    model.config["classes"] = LABELS
    to_huggingface(model, tokenizer, tmp_path / "tokens")
    found = pipeline("token-classification", str(tmp_path / "tokens"), ignore_labels=[])(TEXTS[0])
    assert [row["entity"] for row in found] == [LABELS[n] for n in model(tokens[:1])[0, 1:-1].argmax(-1)]


def test_a_folder_comes_back(tmp_path):
    model = drawn("llama_small")
    zoo.to_huggingface(model, words(WRITES), tmp_path / "new")
    again = zoo.create("llama_small", weights=f"hf:{tmp_path / 'new'}")
    assert all(torch.equal(again.state_dict()[name], x) for name, x in model.state_dict().items())


def test_what_is_refused(tmp_path):
    """Before anything is written."""
    model, folder = drawn("llama_small"), tmp_path / "new"
    for size in (18, 20):
        with pytest.raises(ValueError, match=rf"tokenizer has {size} tokens, and the model's vocab_size is 19"):
            to_huggingface(model, words(WRITES, size), folder)
    with pytest.raises(ValueError, match="tokenizer pads with token 0, and the model's padding is 1"):
        to_huggingface(drawn("roberta_base"), words(READS), folder)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not there: expected a tokenizer\.json"):
        to_huggingface(model, tmp_path, folder)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json is truncated or damaged, not a tokenizer\.json"):
        to_huggingface(model, tmp_path / "tokenizer.json", folder)
    with pytest.raises(ValueError, match=r"tokenizer must be a tokenizers\.Tokenizer or the path .*, got 3"):
        to_huggingface(model, 3, folder)
    assert not folder.exists()
    with pytest.raises(ValueError, match=r"folder .* exists already: give another one"):
        to_huggingface(model, None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_nothing_stays_of_a_folder_that_could_not_be_written(tmp_path, monkeypatch):
    def fail(self, folder):
        (folder / "config.json").write_text("half")
        raise OSError("no space")

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        to_huggingface(drawn("llama_small"), words(WRITES), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_read_for_tensors_only(tmp_path):
    """Where the hub has pytorch_model.bin and nothing else."""
    model = drawn("bert_small", head="masked")
    to_huggingface(model, None, tmp_path / "new")
    file = tmp_path / "new" / "model.safetensors"
    tensors = files.read_tensors(file)
    file.unlink()
    torch.save(tensors, file.with_name("pytorch_model.bin"))
    again = zoo.create("bert_base", weights=f"hf:{file.parent}")
    assert again.config["arguments"]["dim"] == 8
    assert all(torch.equal(again.state_dict()[name], x) for name, x in model.state_dict().items())
    torch.save(tensors | {"code": print}, file.with_name("pytorch_model.bin"))
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin is damaged, or holds more than tensors \(.*print, which is not read"
    ):
        zoo.create("bert_base", weights=f"hf:{file.parent}")
