"""Our Transformers of Marian's kind become MarianMTModel: the same bits, logits and translations."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import zoo
from zoo.generation import decoding
from zoo.pretrained.huggingface import to_huggingface

OPTIONS = dict(vocab_size=11, dim=32, heads=4, hidden_dim=48, layers=2, padding=2, interleaved=False, bias=True)
WORDS = ["</s>", "<unk>", "<pad>", *"abcdefgh"]


def translator(**changed):
    torch.manual_seed(0)
    model = zoo.create("transformer_base", **OPTIONS | changed).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape)
    nn.init.zeros_(model.embedding.table.weight[2])
    return model


def words():
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(WORDS[:3])
    return tokenizer


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_there_and_back(activation, tmp_path):
    ours = translator(activation=activation)
    theirs = to_huggingface(ours, words(), tmp_path / "theirs")
    assert type(theirs) is transformers.MarianMTModel
    source, target = torch.randint(3, 11, (2, 5)), torch.randint(3, 11, (2, 4))
    with torch.no_grad():
        torch.testing.assert_close(theirs(source, decoder_input_ids=target).logits, ours(source, target), rtol=1e-5, atol=1e-5)
    again = zoo.create("transformer_big", weights=f"hf:{tmp_path / 'theirs'}")
    expected = ours.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in again.state_dict().items())
    assert again.config["arguments"] == OPTIONS | {"activation": activation, "dropout": 0.1}


def test_its_folder_translates(tmp_path):
    """Loaded by the `Auto` classes: texts end as ours do, padding never comes, and rows of unequal length are padded right."""
    ours = translator()
    to_huggingface(ours, words(), tmp_path / "theirs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs")
    batch = tokenizer(["a b c", "d", "e f", "g", "h a d", "g g"], padding=True, return_tensors="pt")
    assert batch["input_ids"][:2].tolist() == [[3, 4, 5, 0], [6, 0, 2, 2]]
    expected = model.generate(**batch, max_new_tokens=7, do_sample=False, num_beams=1)
    start = torch.full((6, 1), 2)
    decoder = ours.start(batch["input_ids"], batch["attention_mask"].bool(), capacity=8)
    found = decoding.greedy(decoder, start, max_new_tokens=7, stop=(0,), pad=2, forbidden=(2,))
    assert len(found.unique()) > 2
    assert torch.equal(found, expected[:, 1 : 1 + found.shape[1]])
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["decoder_start_token_id"] == 2


@pytest.mark.parametrize("changed", [dict(bias=False), dict(interleaved=True)])
def test_other_transformers_have_no_class_there(changed):
    with pytest.raises(ValueError, match=r"or MarianMTModel, got one of zoo\.transformer"):
        to_huggingface(translator(**changed))


def test_a_tokenizer_that_pads_otherwise(tmp_path):
    with pytest.raises(ValueError, match="tokenizer pads with token 2, and the model's padding is 1"):
        to_huggingface(translator(padding=1), words(), tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
