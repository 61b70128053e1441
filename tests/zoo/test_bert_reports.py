"""BERT and its kin by name: what the public reports of padding, bad input, published sizes, parts and start."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import zoo
from layers import masks
from layers.attention import MultiHeadAttention
from layers.embedding import TokenEmbedding
from layers.feedforward import SwiGLU
from layers.normalization import RMSNorm
from layers.positions import Rotary
from layers.transformer import EncoderBlock, PreNorm
from zoo.bert import Bert, sentence_embeddings

# -------------------------------------------------------------------------------------------- what the public reports of padding

SMALL = dict(vocab_size=19, dim=12, heads=3, hidden_dim=20, layers=2, max_positions=9)
NAMES = {"bert_base": "BertModel", "roberta_base": "RobertaModel", "distilbert_base": "DistilBertModel"}


def small(name="bert_small", **options):
    torch.manual_seed(0)
    model = zoo.create(name, **SMALL | options)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model.double().eval()


def as_tuple(output):
    return output if isinstance(output, tuple | list) else (output,)


def sentences(*shape):
    return torch.randint(3, 19, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", [None, "pooled", "sequence", "masked", "answer"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_is_the_same_wherever_it_is_padded(name, head):
    """transformers 3150 and 19581, keras-hub 571: positions count real tokens, and the first real one is pooled."""
    if (name, head) == ("distilbert_base", "pooled"):
        return
    model, words, junk = small(name, head=head), sentences(2, 4), sentences(2, 3)
    real = torch.ones(2, 4, dtype=torch.bool)
    parts = [(words, real), (junk, ~real[:, :3])]
    expected = as_tuple(model(words))
    for order in (parts, parts[::-1]):
        tokens, mask = (torch.cat(x, 1) for x in zip(*order, strict=True))
        for found, alone in zip(as_tuple(model(tokens, mask)), expected, strict=True):
            whole = found.shape[:2] != (2, 7)
            torch.testing.assert_close(found if whole else found[mask].unflatten(0, (2, 4)), alone)
    assert not torch.allclose(as_tuple(model(tokens))[0][:, -4:], expected[0][:, -4:])


def test_bert_of_transformers_counts_padding_on_the_left():
    """And so needs `position_ids`, which ours are."""
    model, tokens = small("bert_base"), sentences(2, 5)
    mask = torch.arange(5) >= torch.tensor([[0], [2]])
    config = transformers.BertConfig(
        vocab_size=19, hidden_size=12, num_attention_heads=3, intermediate_size=20, num_hidden_layers=2, max_position_embeddings=9
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False).double().eval()
    theirs.load_state_dict(model.maps["huggingface"].export(model))
    given = dict(input_ids=tokens, attention_mask=mask.long())
    torch.testing.assert_close(
        model(tokens, mask)[mask], theirs(**given, position_ids=masks.padded_positions(mask)).last_hidden_state[mask]
    )
    assert not torch.allclose(model(tokens, mask)[1, 2:], theirs(**given).last_hidden_state[1, 2:])


@pytest.mark.parametrize("head", ["sequence", "tokens"])
def test_what_stands_in_padding_is_no_matter(head):
    """transformers 17463: states of padding are zeros, not what was computed of the padding token; sums and means stay right."""
    model, tokens, mask = small(head=head), sentences(3, 5), torch.arange(5) < torch.tensor([[5], [2], [0]])
    other = tokens.where(mask, 7)
    assert torch.equal(model.encode(tokens, mask), model.encode(other, mask))
    assert not model.encode(tokens, mask)[~mask].any()
    embedded = sentence_embeddings(model, tokens, mask)
    torch.testing.assert_close(embedded[1], sentence_embeddings(model, tokens[1:2, :2])[0])
    torch.testing.assert_close(embedded.norm(dim=1), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert model(tokens, mask).isfinite().all()


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_positions_of_roberta_begin_behind_the_padding(padding):
    """transformers 9116 and 14243, rinnakk 3, ANEForge 257: the longest rows fit, beside short ones."""
    model = small("roberta_base", padding=padding)
    table = model.positions.table.weight
    assert len(table) == SMALL["max_positions"] + padding + 1
    tokens = sentences(2, 9).clamp(min=padding + 1)
    mask = torch.arange(9) < torch.tensor([[9], [2]])
    assert model(tokens, mask).isfinite().all()
    gradient = torch.autograd.grad(model(tokens, mask).sum(), table)[0].any(1)
    assert gradient.tolist() == [False] * (padding + 1) + [True] * 9
    with pytest.raises(ValueError, match="tokens must be 9 a row at most, got '10 a row'"):
        model(sentences(1, 10))
    with pytest.raises(ValueError, match="positions must be from 0 to 8, got 0 to 9"):
        model(sentences(1, 10), torch.ones(1, 10) > 0)
    assert model(sentences(1, 10), torch.arange(10)[None] < 9).isfinite().all()  # of ten tokens nine are real


@pytest.mark.parametrize(
    ("name", "eps"), [("bert_base", 1e-12), ("minilm", 1e-12), ("roberta_base", 1e-5), ("distilbert_base", 1e-12)]
)
def test_every_norm_has_the_papers_eps(name, eps):
    """x-transformers 37, fast-transformers 103, keras-hub 642: that of the first norm alone, or torch's, gives other states."""
    with torch.device("meta"):
        model = zoo.create(name, head="masked")
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {eps}
    assert sum(isinstance(m, nn.LayerNorm) for m in model.modules()) == 2 * len(model.encoder) + 2


@pytest.mark.parametrize("vocab_size", [25, 11])
def test_a_resized_vocabulary_keeps_what_is_known(vocab_size, tmp_path):
    """transformers 1730 and 2480, skeletoken 108: the bias of a tied output goes along. Then it is saved, and goes to theirs."""
    model, tokens, kept = small(head="masked"), sentences(2, 5) % 11, min(19, vocab_size)
    before = model(tokens)
    model.freeze(["embedding"])
    model.resize(vocab_size)
    after = model(tokens)
    assert after.shape == (2, 5, vocab_size)
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    if vocab_size > 19:
        assert not model.head.bias[19:].any()
        assert model(tokens + 8).isfinite().all()
    assert not model.embedding.table.weight.requires_grad
    assert model.head.bias.requires_grad
    zoo.save(model, tmp_path)
    assert torch.equal(zoo.load(tmp_path)(tokens), after)
    with pytest.raises(ValueError, match="vocab_size must be positive, got 0"):
        model.resize(0)
    assert model.embedding.table.num_embeddings == vocab_size


def test_token_types_that_there_are_not_are_named():
    """transformers 1538: RoBERTa has one; an index out of range said nothing of it."""
    tokens = sentences(2, 5)
    for name, words in (
        ("roberta_base", "types must be tokens from 0 to 0, got 1"),
        ("bert_base", None),
        ("distilbert_base", "types must be None"),
    ):
        model = small(name)
        if words is None:
            assert not torch.equal(model(tokens, types=torch.ones_like(tokens)), model(tokens))
            assert torch.equal(model(tokens, types=torch.zeros_like(tokens)), model(tokens))
            continue
        with pytest.raises(ValueError, match=words):
            model(tokens, types=torch.ones_like(tokens))


BAD_FORWARDS = [
    (dict(tokens=sentences(5)), "tokens must have 2 axes"),
    (dict(tokens=sentences(2, 5).float()), "tokens must be of dtype torch.int64 or torch.int32, got torch"),
    (dict(tokens=sentences(2, 5) + 19), "tokens must be tokens from 0 to 18, got"),
    (dict(mask=torch.ones(2, 4) > 0), "mask: length must be 5, got 4"),
    (dict(mask=torch.ones(2, 5)), "mask must be boolean"),
    (dict(types=torch.zeros(1, 5).long()), "types: batch must be 2, got 1"),
    (dict(types=torch.zeros(2, 5)), "types must be of dtype"),
    (dict(positions=torch.arange(4)), "positions: length must be 5, got 4"),
    (dict(positions=torch.arange(5) + 5), "positions must be from 0 to 8, got 5 to 9"),
    (dict(tokens=sentences(2, 0)), "states must be of one token a row at least"),
]


@pytest.mark.parametrize(("changed", "words"), BAD_FORWARDS)
def test_inputs_that_do_not_fit_are_named(changed, words):
    with pytest.raises(ValueError, match=words):
        small(head="sequence")(**dict(tokens=sentences(2, 5)) | changed)


# ------------------------------------------------------------------------------------------------------------ names, parts, start

SIZES = {
    "bert_base": (transformers.BertConfig, {}),
    "bert_large": (transformers.BertConfig, dict(dim=1024, heads=16, hidden_dim=4096, layers=24)),
    "bert_small": (transformers.BertConfig, dict(dim=128, heads=2, hidden_dim=512, layers=2)),
    "minilm": (transformers.BertConfig, dict(dim=384, heads=12, hidden_dim=1536, layers=6)),
    "roberta_base": (transformers.RobertaConfig, {}),
    "roberta_large": (transformers.RobertaConfig, dict(dim=1024, heads=16, hidden_dim=4096, layers=24)),
    "distilbert_base": (transformers.DistilBertConfig, {}),
}
"""transformers' defaults are the base sizes; what is published of RoBERTa has 514 positions, one type, and an eps of 1e-5."""


@pytest.mark.parametrize("name", SIZES)
def test_named_variants_are_the_published_models(name):
    """Every tensor of theirs, by name and shape, on the meta device; 109 and 335 million parameters, 125 and 355, 66, 22.6."""
    kind, sizes = SIZES[name]
    keys = dict(dim="hidden_size", heads="num_attention_heads", hidden_dim="intermediate_size", layers="num_hidden_layers")
    given = {keys[key]: value for key, value in sizes.items()}
    if "roberta" in name:
        given |= dict(max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        theirs = getattr(transformers, kind.__name__.replace("Config", "ForMaskedLM"))(kind(**given))
        model = zoo.create(name, head="masked")
    exported = model.maps["huggingface"].export(model)
    assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert {block.attention.sublayer.heads for block in model.encoder} == {sizes.get("heads", 12)}


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_where_theirs_is(name):
    """After the embeddings, of attention's weights, and after each sublayer; DistilBERT's classifier has twice as much."""
    with torch.device("meta"):
        model = zoo.create(name, head="sequence")
    assert model.dropout.p == 0.1
    for block in model.encoder:
        assert block.attention.sublayer.dropout == block.attention.drop.p == block.feedforward.drop.p == 0.1
        assert block.feedforward.sublayer.dropout.p == 0.0
    assert model.head.dropout.p == {"distilbert_base": transformers.DistilBertConfig().seq_classif_dropout}.get(name, 0.1)
    assert model.head.pooled.dropout.p == (0.1 if name == "roberta_base" else 0.0)


@pytest.mark.parametrize(("std", "expected"), [(0.02, 0.02), (None, 128**-0.5)])
def test_initial_values(std, expected):
    """None is what bert_small has: with 0.02 its attentions begin by saying nothing."""
    model = zoo.create("bert_small", vocab_size=500, head="masked", std=std)
    tables = [model.embedding.table.weight[1:], model.positions.table.weight, model.encoder[0].feedforward.sublayer.up.weight]
    assert [x.std().item() for x in tables] == pytest.approx([expected, 0.02, expected], rel=0.03)
    assert not model.embedding.table.weight[0].any()
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_parts_are_frozen_and_the_head_learns():
    model = small(head="tokens", num_classes=3).train()
    assert model.output_layers == ("head.output",)
    assert [*model.parts()] == ["embedding", "positions", "types", "norm", "encoder1", "encoder2", "head"]
    model.freeze(["embedding", "positions", "types", "norm", "encoder1"])
    model(sentences(2, 5)).sum().backward()
    learning = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {"encoder", "head"}
    assert all(p.grad is None for p in model.encoder[0].parameters())
    assert small(head="masked").output_layers == small().output_layers == ()


def test_blocks_of_today_are_a_composition():
    """Pre-norm, rotary, gated; and padded anywhere."""
    torch.manual_seed(0)

    def block():
        attention = MultiHeadAttention(12, 3, positions=Rotary(4), bias=False)
        return EncoderBlock(PreNorm(attention, RMSNorm(12)), PreNorm(SwiGLU(12, 20), RMSNorm(12)))

    model = Bert([block() for _ in range(2)], TokenEmbedding(19, 12), RMSNorm(12)).double()
    tokens, mask = sentences(2, 6), torch.tensor([[False, True, True, False, True, False], [True] * 6])
    found = model(tokens, mask, positions=masks.padded_positions(mask))
    torch.testing.assert_close(found[0, mask[0]], model(tokens[:1, mask[0]])[0])
    assert [*model.maps] == []
