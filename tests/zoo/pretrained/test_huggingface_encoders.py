"""BERT, RoBERTa, DistilBERT and RoFormer with every head: Hugging Face's folders become our models and come back, bit for bit."""

from __future__ import annotations

import json
import random

import pytest
import torch
import transformers
from torch import nn

import zoo
from zoo import files
from zoo.pretrained.encoder_options import FAMILIES, HEADS
from zoo.pretrained.huggingface import ARCHITECTURES, arguments_of, to_huggingface

NAMES = {"bert": "bert_base", "roberta": "roberta_large", "distilbert": "distilbert_base", "roformer": "roformer_base"}
CLASSES = {"Model": None} | {theirs: head for head, theirs in HEADS.items()}
LABELS = ["B-city", "I-city", "O"]


def drawn(family, seed):
    """Options of a small model, each away from theirs by default."""
    draw = random.Random(seed)
    heads = draw.choice((1, 2, 3))
    dropout = draw.choice((0.0, 0.25))
    options = dict(vocab_size=draw.randint(12, 30), pad_token_id=draw.randint(0, 4))
    sizes = dict(dim=heads * draw.choice((2, 4)), heads=heads, layers=draw.randint(1, 3), hidden_dim=draw.randint(3, 20))
    if family == "distilbert":
        rates = dict(dropout=dropout, attention_dropout=dropout, qa_dropout=dropout, seq_classif_dropout=2 * dropout)
        sizes = dict(dim=sizes["dim"], n_heads=heads, n_layers=sizes["layers"], hidden_dim=sizes["hidden_dim"])
        return options | sizes | rates | dict(max_position_embeddings=draw.randint(9, 20))
    names = dict(dim="hidden_size", heads="num_attention_heads", layers="num_hidden_layers", hidden_dim="intermediate_size")
    return options | {names[k]: v for k, v in sizes.items()} | dict(
        type_vocab_size=draw.randint(1, 3), layer_norm_eps=draw.choice((1e-5, 1e-3)), hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, max_position_embeddings=draw.randint(16, 20),
    )  # fmt: skip


def made(family, theirs="Model", seed=0, **options):
    """One of their models with drawn weights."""
    kind = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**drawn(family, seed), **options)
    torch.manual_seed(seed)
    model = getattr(transformers, kind + theirs)(config).eval()
    for p in (p for p in model.parameters() if p.requires_grad):  # all but RoFormer's table of sines
        nn.init.normal_(p, std=0.4)
    return model


def outputs(model, tokens, mask):
    found = model(tokens.masked_fill(~mask, model.config.pad_token_id), attention_mask=mask.long())
    return torch.stack([found.start_logits, found.end_logits], -1) if "start_logits" in found else found[0]


def of(model, folder, **arguments):
    model.save_pretrained(folder)
    return zoo.create(NAMES[model.config.model_type], weights=f"hf:{folder}", **arguments).eval()


def same_state(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], x) for name, x in expected.items())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("theirs", CLASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, theirs, seed, tmp_path):
    """What ours computes is theirs; then the same class, config, names and bits."""
    labels = dict(id2label=dict(enumerate(LABELS)), label2id={}) if CLASSES[theirs] in ("sequence", "tokens") else {}
    before = made(family, theirs, seed, **labels)
    pooled = dict(head="pooled") if theirs == "Model" and family in ("bert", "roberta") else {}
    ours = of(before, tmp_path, **pooled)
    again = to_huggingface(ours)
    assert type(again) is type(before)
    assert same_state(again.state_dict(), before.state_dict())
    assert ours.config.get("classes") == (LABELS if labels else None)
    tokens = torch.randint(5, before.config.vocab_size, (2, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    with torch.no_grad():
        expected = outputs(before, tokens, mask)
        assert torch.equal(outputs(again, tokens, mask), expected)
        found = (zoo.create(NAMES[family], weights=tmp_path).eval() if pooled else ours)(tokens, mask)
    found = torch.stack(found, -1) if isinstance(found, tuple) else found
    real = mask.view(2, 7, 1) if found.ndim == 3 else torch.ones(())
    torch.testing.assert_close(found * real, expected * real, rtol=1e-4, atol=1e-5)
    theirs_again, theirs_before = again.config.to_dict(), before.config.to_dict()
    for name in ("bos_token_id", "eos_token_id", "architectures", "_name_or_path", "dtype"):
        theirs_again.pop(name, None), theirs_before.pop(name, None)
    theirs_again["label2id"] = theirs_before["label2id"] = None  # of which id2label is enough for us
    assert theirs_again == theirs_before


def test_every_class_is_tried():
    tried = {f"{kind}{theirs}" for kind in FAMILIES.values() for theirs in CLASSES} | {"BertForPreTraining"}
    assert {name for name in ARCHITECTURES if not name.endswith(("ForCausalLM", "LMHeadModel"))} == tried


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_head_there_is_no_pooler(family, tmp_path):
    before = made(family)
    again = to_huggingface(of(before, tmp_path, head=None))
    expected = {name: x for name, x in before.state_dict().items() if not name.startswith("pooler.")}
    assert same_state(again.state_dict(), expected)


def test_a_head_is_not_taken_for_another_of_the_same_name(tmp_path):
    """`classifier` is of tokens in one class and of rows in another."""
    before = made("bert", "ForTokenClassification", id2label=dict(enumerate(LABELS)), label2id={})
    model = of(before, tmp_path, head="sequence", num_classes=3)
    assert not torch.equal(model.head.output.weight, before.classifier.weight)
    assert torch.equal(model.embedding.table.weight, before.bert.embeddings.word_embeddings.weight)
    assert "classes" not in model.config
    same = of(before, tmp_path)
    assert torch.equal(same.head.output.weight, before.classifier.weight)


def test_labels_and_output_layer_agree(tmp_path):
    made("bert", "ForTokenClassification", id2label=dict(enumerate(LABELS)), label2id={}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for names, words in (
        ({"0": "a", "1": "b"}, "classes are 2, and the output layer has 3"),
        ({"0": "a", "2": "b"}, r"config\.json: id2label must give a name to each of 0, 1, \.\.\., got"),
        (["a"], "id2label must give"),
    ):
        files.write_json(tmp_path / "config.json", config | {"id2label": names})
        with pytest.raises(ValueError, match=words):
            zoo.create("bert_base", weights=f"hf:{tmp_path}")


def test_a_head_that_the_config_promises_must_be_there(tmp_path):
    """And so must the rest; what is left over is named."""
    made("bert", "ForSequenceClassification").save_pretrained(tmp_path)
    tensors = files.read_tensors(tmp_path)
    for lost, words in (
        ("classifier.weight", r"missing: head\.output\.weight"),
        ("bert.encoder.layer.0.attention.self.key.bias", r"missing: encoder\.0\.attention\.sublayer\.key\.bias"),
    ):
        files.write_tensors(tmp_path / "model.safetensors", {name: x for name, x in tensors.items() if name != lost})
        with pytest.raises(ValueError, match=rf"do not fit bert_base: .*{words}"):
            zoo.create("bert_base", weights=f"hf:{tmp_path}")
    files.write_tensors(tmp_path / "model.safetensors", tensors | {"bert.other.weight": torch.ones(1), "other": torch.ones(1)})
    with pytest.raises(ValueError, match=r"do not fit bert_base: .*unmapped: bert\.other\.weight, other"):
        zoo.create("bert_base", weights=f"hf:{tmp_path}")
    with pytest.raises(ValueError, match=r"another architecture, bert_base, bert_large, bert_small, minilm, not of roberta_base"):
        zoo.create("roberta_base", weights=f"hf:{tmp_path}")


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_shards_and_names_of_old(prefix, tmp_path):
    """As the hub's files of 2018 have them, in three shards: gamma and beta, positions 0, 1, ..., heads that we leave out."""
    before = made("bert", "ForPreTraining")
    before.save_pretrained(tmp_path)
    old = {k.replace("bert.", prefix): v for k, v in files.read_tensors(tmp_path).items()}
    old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in old.items()}
    old |= {f"{prefix}embeddings.position_ids": torch.arange(16)[None]}
    names = sorted(old)
    shards = {f"model-{n}-of-3.safetensors": names[n::3] for n in range(3)}
    for file, part in shards.items():
        files.write_tensors(tmp_path / file, {name: old[name] for name in part})
    (tmp_path / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    files.write_json(tmp_path / "model.safetensors.index.json", index)
    model = zoo.create("bert_base", weights=f"hf:{tmp_path}")
    assert model.config["arguments"]["head"] == "masked"
    again = to_huggingface(model).state_dict()
    assert all(torch.equal(x, before.state_dict()[name]) for name, x in again.items())


def test_a_bare_config_means_their_defaults():
    """Not those of the variant that is asked for."""
    for kind in ("Bert", "Roberta", "DistilBert", "RoFormer"):
        config = getattr(transformers, f"{kind}Config")()
        short = {"architectures": [f"{kind}Model"], "model_type": config.model_type}
        assert arguments_of(short) == arguments_of(config.to_dict() | short)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("Bert", dict(architectures=["ElectraForMaskedLM"]), "architectures must be one of .*got ElectraForMaskedLM"),
        ("Bert", dict(architectures=["BertLMHeadModel"]), "got BertLMHeadModel"),
        ("Bert", dict(no_such_option=3), "BertModel has options that are unknown here: no_such_option = 3"),
        ("Bert", dict(hidden_act="relu"), "hidden_act of BertModel must be 'gelu', got 'relu'"),
        ("Bert", dict(is_decoder=True), "is_decoder of BertModel must be False, got True"),
        ("Bert", dict(position_embedding_type="relative_key"), "position_embedding_type of BertModel must be 'absolute'"),
        ("Bert", dict(attention_probs_dropout_prob=0.3), "hidden_dropout_prob and attention_probs_dropout_prob .*equal"),
        ("Bert", dict(classifier_dropout=0.3), "classifier_dropout must be 0.1, .* got 0.3"),
        ("Bert", dict(hidden_size="768"), "hidden_size of BertModel must be a number, got '768'"),
        ("Roberta", dict(pad_token_id=None), "pad_token_id of Roberta must be a token"),
        ("DistilBert", dict(seq_classif_dropout=0.3), "seq_classif_dropout must be 0.2, .* got 0.3"),
        ("RoFormer", dict(embedding_size=64), "embedding_size must be hidden_size, 768, got 64"),
        ("RoFormer", dict(rotary_value=True), "rotary_value of RoFormerModel must be False, got True"),
        ("DistilBert", dict(activation="relu"), "activation of DistilBertModel must be 'gelu', got 'relu'"),
    ],
)
def test_what_we_have_not_is_named(kind, changes, words):
    with pytest.raises(ValueError, match=words):
        arguments_of({"architectures": [f"{kind}Model"]} | changes)


def test_what_theirs_have_not_is_named():
    small = dict(vocab_size=9, dim=4, heads=1, hidden_dim=4, layers=1)
    with pytest.raises(ValueError, match=r"types must be 0 for Hugging Face's DistilBERT, got 2"):
        to_huggingface(zoo.create("distilbert_base", types=2, **small))
    with pytest.raises(ValueError, match=r"eps must be 1e-12 for Hugging Face's DistilBERT, got 0.001"):
        to_huggingface(zoo.create("distilbert_base", eps=1e-3, **small))
