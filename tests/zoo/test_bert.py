from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zoo
from layers import masks
from layers.attention import MultiHeadAttention
from layers.embedding import TokenEmbedding
from layers.feedforward import SwiGLU
from layers.normalization import RMSNorm
from layers.positions import Rotary
from layers.testing import Contract, Input, Twin, require_equal, tokens
from layers.testing.items import examples
from layers.testing.profiles import COMMON
from layers.testing.properties import GENERIC
from layers.transformer import EncoderBlock, PreNorm
from zoo import bert
from zoo.bert import BERT, DISTILBERT, ROBERTA, Bert, build, sentence_embeddings

FAMILIES = {BERT: "Bert", ROBERTA: "Roberta", DISTILBERT: "DistilBert"}
EVERY = [(family, head) for family in FAMILIES for head in (None, "masked", *family.heads)]
POOLED = ("pooled", "sequence")
FREE = {
    "bad_input": "rows of any number and length will do",
    "batch_rows": "how far other rows are padded sets the last bits, for padding is left out; see `test_a_row_sees_no_other`",
}
q = torch.empty(1, 1, 2, 2, dtype=torch.float64, device="meta")
if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[1].dtype != torch.float64:
    FREE["compile"] = (
        "torch 2.6 believes that the log-sum-exp of attention in float64 is float32, and so compiles a wrong backward"
    )


def real_tokens(axes, side):
    """(b, n), True for the real tokens of rows that are padded on that side; each has one at least."""

    def sample(shape, g):
        return masks.allowed_from_lengths(torch.randint(1, shape[1] + 1, shape[:1], generator=g), shape[1], side)

    return Input(tuple(axes.split()), {}, sample)


def words(axes, vocab_size, padding):
    """Any but the padding, by which RoBERTa's twin counts positions."""

    def sample(shape, g):
        found = torch.randint(vocab_size - 1, shape, generator=g)
        return found + (found >= padding)

    return Input(tuple(axes.split()), {}, sample)


def outputs(a, sizes):
    if a.head == "answer":
        return [("batch", "length"), ("batch", "length")]
    last = {None: a.dim, "pooled": a.dim, "masked": a.vocab_size}.get(a.head) or a.num_classes
    return ("batch", last) if a.head in POOLED else ("batch", "length", last)


def at_real(output, mask):
    """Of heads nothing is promised at padding, and transformers has something else there."""
    if isinstance(output, torch.Tensor):
        return output if output.ndim == 2 else output * mask[..., None]
    return [x * mask for x in output]


def call(model, inputs):
    return at_real(model(**inputs), inputs["mask"])


def theirs(implementation):
    def make(a):
        kind = FAMILIES[a.family]
        sizes = dict(vocab_size=a.vocab_size, pad_token_id=a.padding, num_labels=a.num_classes or 2)
        if kind == "DistilBert":
            sizes |= dict(dim=a.dim, n_heads=a.heads, hidden_dim=a.hidden_dim, n_layers=a.layers, dropout=0.0)
            sizes |= dict(attention_dropout=0.0, seq_classif_dropout=0.0, qa_dropout=0.0)
        else:
            sizes |= dict(hidden_size=a.dim, num_attention_heads=a.heads, intermediate_size=a.hidden_dim)
            sizes |= dict(num_hidden_layers=a.layers, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
            sizes |= dict(layer_norm_eps=a.eps, type_vocab_size=a.types)
        sizes |= dict(max_position_embeddings=a.max_positions + (a.padding + 1 if kind == "Roberta" else 0))
        config = getattr(transformers, f"{kind}Config")(**sizes, attn_implementation=implementation)
        pooling = {"add_pooling_layer": False} if a.head is None and kind != "DistilBert" else {}
        return getattr(transformers, kind + CLASSES[a.head])(config, **pooling)

    return make


CLASSES = {
    None: "Model", "pooled": "Model", "masked": "ForMaskedLM", "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification", "answer": "ForQuestionAnswering",
}  # fmt: skip


def call_theirs(model, inputs):
    mask, given = inputs["mask"], {}
    kind = model.config.model_type
    if kind != "distilbert":
        given["token_type_ids"] = inputs["types"]
    if kind != "roberta" and not mask[:, 0].all():  # these two count padding too, where it is on the left
        given["position_ids"] = masks.padded_positions(mask)
    ids = inputs["tokens"].masked_fill(~mask, model.config.pad_token_id)
    found = model(input_ids=ids, attention_mask=mask.long(), **given)
    if "start_logits" in found:
        return at_real([found.start_logits, found.end_logits], mask)
    pooled = getattr(found, "pooler_output", None)
    return at_real(found.logits if "logits" in found else found.last_hidden_state if pooled is None else pooled, mask)


def contract(families, heads):
    def inputs(a):
        types = dict(types=tokens("batch length", a.types)) if a.types else {}
        mask = real_tokens("batch length", a._side)
        return dict(tokens=words("batch length", a.vocab_size, a.padding), mask=mask) | types

    return Contract(
        build,
        arguments=dict(
            family=st.sampled_from(families),
            vocab_size=st.integers(13, 16),
            heads=st.integers(1, 3),
            _head_dim=st.sampled_from([4, 6]),  # a layer norm of two features is little more than the sign of their difference
            dim=lambda a: a.heads * a._head_dim,
            hidden_dim=st.integers(19, 22),
            layers=st.integers(1, 2),
            max_positions=st.integers(12, 14),
            types=lambda a: 0 if a.family is DISTILBERT else st.integers(1, 3),
            dropout=0.0,
            padding=st.integers(0, 3),
            eps=lambda a: 1e-12 if a.family is DISTILBERT else st.sampled_from([1e-12, 1e-5, 1e-2]),
            head=lambda a: st.sampled_from([h for h in heads if (a.family, h) in EVERY]),
            num_classes=lambda a: st.integers(2, 4) if a.head in ("sequence", "tokens") else None,
            _side=lambda a: "right" if a.head in POOLED else st.sampled_from(["left", "right"]),  # theirs pool padding
        ),
        inputs=inputs,
        outputs=outputs,
        call=call,
        twins=[
            Twin(how, build=theirs(how), weights=lambda a: build(**a.passed()).maps["huggingface"], call=call_theirs)
            for how in ("eager", "sdpa")
        ],
        invalid=[
            (dict(heads=0), "heads"),
            (dict(dropout=1.0), "dropout"),
            (dict(padding=99), "padding"),
            (dict(head="next"), "head"),
            (dict(types=-1), "types"),
            (dict(head="tokens", num_classes=0), "num_classes"),
            (dict(head=None, num_classes=2), "num_classes"),
            (dict(head="answer", num_classes=3), "num_classes"),
        ],
        without=FREE,
        model=True,
        name="Bert",
    )


berts = contract([*FAMILIES], [None, "masked", *BERT.heads])


@pytest.mark.parametrize(("family", "head"), EVERY, ids=str)
def test_every_head_equals_that_of_transformers(family, head):
    """Padded on the right and on the left, forward and backward, weights both ways; `berts` above draws what this lists."""
    one = contract([family], [head])
    for prop in (prop for prop in GENERIC if prop.name in ("forward", "backward", "weights")):
        examples(one, prop, one.twins[0], limit=8)()


# ---------------------------------------------------------------------------------------------------- rows without their padding


@settings(max_examples=8, derandomize=True, database=None, **COMMON)
@given(case=berts.cases())
def test_left_out_padding_changes_nothing(case):
    """Forward and backward; what is padding gives zeros either way, and no linear layer has seen it."""
    inputs, block = case.inputs(), case.block()
    real, rows = int(inputs["mask"].sum()), []
    block.encoder[0].feedforward.register_forward_hook(lambda module, given, output: rows.append(output.shape[:2]))
    found, states = case.gradients(lambda i: case.call(block, i), inputs, block), block.encode(**inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bert, "real_tokens", lambda mask: None)
        padded, whole = case.gradients(lambda i: case.call(block, i), inputs, block), block.encode(**inputs)
    require_equal(found[0], padded[0], case.tolerance(block))
    require_equal(found[2], padded[2], 10 * case.tolerance(block), "gradient", common=1.0)
    shape = tuple(inputs["mask"].shape)
    assert rows == [(1, real) if real < inputs["mask"].numel() else shape] * 2 + [shape] * 2
    assert not states[~inputs["mask"]].any()
    assert not whole[~inputs["mask"]].any()


@settings(max_examples=8, derandomize=True, database=None, **COMMON)
@given(case=berts.cases())
def test_a_row_sees_no_other(case):
    """To the last bit where rows are padded alike; how far they are sets how many tokens a linear layer takes at once."""
    block, inputs, other, batch = case.block(), case.inputs(), case.inputs(stream=3), case.batch_size()
    row = case.seed % batch
    keep = torch.arange(batch)[:, None] == row
    mixed = {name: x if name == "mask" else x.where(keep, other[name]) for name, x in inputs.items()}
    found, expected = (as_tuple(case.call(block, i)) for i in (mixed, inputs))
    alone = as_tuple(case.call(block, {name: x[row : row + 1] for name, x in inputs.items()}))
    moved = as_tuple(case.call(block, other | {"mask": inputs["mask"]}))
    for x, y, z, w in zip(found, expected, alone, moved, strict=True):
        assert torch.equal(x[row], y[row])
        require_equal(z[0], y[row], case.tolerance(block), common=1.0)
        assert not torch.equal(w[row], y[row])


def as_tuple(output):
    return output if isinstance(output, tuple | list) else (output,)


# -------------------------------------------------------------------------------------------- what the public reports of padding

SMALL = dict(vocab_size=19, dim=12, heads=3, hidden_dim=20, layers=2, max_positions=9)
NAMES = {"bert_base": "BertModel", "roberta_base": "RobertaModel", "distilbert_base": "DistilBertModel"}


def small(name="bert_small", **options):
    torch.manual_seed(0)
    model = zoo.create(name, **SMALL | options)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model.double().eval()


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
