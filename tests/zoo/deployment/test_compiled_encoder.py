"""Compiled BERTs: all heads equal the model's, for any number of rows of any length, and padding goes through attention only."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch.utils._pytree import tree_leaves

import zoo
from layers.testing.drawing import fill
from zoo.bert import BERT, DISTILBERT, ROBERTA, ROFORMER, build, sentence_embeddings
from zoo.deployment import compiled_encoder
from zoo.deployment.compiled_encoder import Reader, by_token

VOCABULARY, LONGEST = 97, 40
FAMILIES = {family.name: family for family in (BERT, ROBERTA, DISTILBERT, ROFORMER)}
EVERY = [(name, head) for name, family in FAMILIES.items() for head in (None, "masked", *family.heads)]
SHAPES = [(1, 1), (1, 7), (2, 1), (3, 3), (5, 2), (19, LONGEST)]


def bert(name, head):
    sizes = dict(dim=12, heads=3, hidden_dim=20, layers=1, max_positions=LONGEST, padding=1, dropout=0.3)
    model = build(FAMILIES[name], VOCABULARY, **sizes, types=0 if name == "distilbert" else 2, head=head)
    return fill(model, torch.Generator().manual_seed(0))


def not_compiled(program, *arguments):
    """What runs in place of machine code."""

    def run(tensors):
        assert all(x.is_contiguous() for x in tensors)  # machine code does not look at strides
        return [x.detach() for x in tree_leaves(program(*tensors))]

    return run


def run_as_it_is(name, head):
    model = bert(name, head)
    with mock.patch.object(compiled_encoder, "compiled", not_compiled):
        return model, zoo.optimize(model, torch.ones(2, 3, dtype=torch.long))


def batches(shape, types, given=True):
    """Keyword arguments: nothing padded, padded on either side, with gaps, with an empty row; types and positions."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCABULARY, shape[::-1], generator=generator).mT  # not contiguous
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
    right, gaps = torch.arange(shape[1]) < lengths, torch.rand(shape, generator=generator) < 0.6
    yield dict(tokens=tokens)
    for mask in (right, right.flip(1), gaps.mT.contiguous().mT, right & (torch.arange(shape[0])[:, None] > 0)):
        yield dict(tokens=tokens, mask=mask)
    more = dict(positions=torch.randint(LONGEST, shape, generator=generator)) if given else {}
    yield (
        dict(tokens=tokens.int(), mask=gaps) | more | (dict(types=torch.randint(2, shape, generator=generator)) if types else {})
    )
    yield dict(tokens=tokens) | (dict(positions=torch.arange(shape[1]).flip(0)) if given else {})


def require_same(model, fast, inputs):
    """At real tokens, and of heads that see rows in those that have any."""
    mask = inputs.get("mask", torch.ones(inputs["tokens"].shape, dtype=torch.bool))
    with torch.no_grad():
        found, expected = fast(**inputs), model.eval()(**inputs)
    assert type(found) is type(expected)
    for x, y in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert x.shape == y.shape
        assert not x.requires_grad
        real = mask if by_token(model.head) else mask.any(1)
        scale = y.square().mean().sqrt()
        assert not real.any() or (x - y)[real].abs().max() < 2e-5 * scale


@pytest.mark.parametrize(("name", "head"), EVERY)
def test_every_head_equals_the_models(name, head):
    model, fast = run_as_it_is(name, head)
    for shape in SHAPES:
        for inputs in batches(shape, types=name != "distilbert"):
            require_same(model, fast, inputs)


@pytest.mark.parametrize("head", ["sequence", "masked"])
def test_padding_goes_through_attention_only(head):
    """And through a head that sees rows; other heads are spared it as well."""
    _, fast = run_as_it_is("bert", head)
    rows, inner = [], fast.programs[0]
    for part in (
        inner.encoder[0].feedforward,
        inner.encoder[0].attention.sublayer.query,
        inner.head.norm if head == "masked" else inner.norm,
    ):
        part.register_forward_hook(lambda module, given, output: rows.append(output.shape[:2]))
    mask = torch.arange(9) < torch.tensor([[2], [5], [9]])
    fast(torch.ones(3, 9, dtype=torch.long), mask)
    assert rows == [(1, 16)] * 3


# ------------------------------------------------------------------------------------------------------------- machine code


@pytest.fixture(scope="module", params=[("bert", "sequence"), ("roberta", "answer")], ids=str)
def models(request):
    model = bert(*request.param)
    return model, zoo.optimize(model, torch.randint(VOCABULARY, (1, 5)))


@pytest.mark.slow
def test_outputs_equal_the_models(models):
    assert models[0].training
    for shape in SHAPES:
        for inputs in batches(shape, types=True):
            require_same(*models, inputs)
    assert models[1](torch.ones(0, 4, dtype=torch.long), torch.ones(0, 4, dtype=torch.bool)) is not None


@pytest.mark.slow
def test_the_program_runs(models):
    """Calls that it is for do not reach the model; one real token does."""
    fast = models[1]
    inner = fast.programs[0]
    with mock.patch.object(inner, "embed", side_effect=AssertionError):
        fast(torch.ones(1, 2, dtype=torch.long))
        fast(torch.ones(4, 3, dtype=torch.long), torch.arange(3) < torch.tensor([[1], [0], [3], [2]]))
        with pytest.raises(AssertionError):
            fast(torch.ones(1, 1, dtype=torch.long))


@pytest.mark.slow
@pytest.mark.parametrize("bad", [
    dict(tokens=torch.full((2, 3), VOCABULARY)), dict(tokens=torch.full((2, 3), -1)), dict(tokens=torch.ones(2, 3)),
    dict(tokens=torch.ones(3, dtype=torch.long)), dict(mask=torch.ones(2, 3)), dict(mask=torch.ones(2, 4, dtype=torch.bool)),
    dict(types=torch.full((2, 3), 2)), dict(positions=torch.full((2, 3), LONGEST)), dict(positions=torch.full((2, 3), -5)),
    dict(tokens=torch.ones(2, LONGEST + 1, dtype=torch.long)), dict(positions=torch.zeros(2, 4, dtype=torch.long)),
], ids=lambda bad: f"{next(iter(bad))} {tuple(next(iter(bad.values())).shape)}")  # fmt: skip
def test_bad_input_is_refused_as_by_the_model(models, bad):
    found = []
    for m in models:
        with pytest.raises(ValueError, match=next(iter(bad))) as error:
            m(**{"tokens": torch.ones(2, 3, dtype=torch.long)} | bad)
        found.append(str(error.value))
    assert found[0] == found[1]


# ------------------------------------------------------------------------------------------------------ what is not compiled


def test_states_of_a_model_with_a_head():
    """By the model, as the embeddings of sentences that are made of them; without a head they are what the program gives."""
    tokens, mask = torch.randint(VOCABULARY, (3, 6)), torch.arange(6) < torch.tensor([[6], [2], [4]])
    for head in (None, "tokens"):
        model, fast = run_as_it_is("bert", head)
        torch.testing.assert_close(sentence_embeddings(fast, tokens, mask), sentence_embeddings(model.eval(), tokens, mask))
        assert fast.encode(tokens, mask)[1, 2:].count_nonzero() == 0


def test_positions_that_attentions_have_are_the_models():
    """A model without a table of positions; the program would not tell them its own."""
    model = bert("bert", None)
    model.positions = None
    with mock.patch.object(compiled_encoder, "compiled", not_compiled):
        fast = zoo.optimize(model, torch.ones(2, 3, dtype=torch.long))
    for inputs in batches((3, 5), types=True):
        with mock.patch.object(Reader, "forward", side_effect=AssertionError) if "positions" in inputs else mock.MagicMock():
            require_same(model, fast, inputs)


@pytest.mark.parametrize(
    "example", [torch.zeros(1, 0, dtype=torch.long), torch.full((1, 2), 99), torch.zeros(3, dtype=torch.long)]
)
def test_a_bad_example_is_refused_before_a_minute_is_spent(example):
    with pytest.raises(ValueError, match="example"):
        zoo.optimize(bert("bert", None), example)


@pytest.mark.parametrize("name", ["bilstm_small", "lstm_small", "fasttext"])
def test_what_a_compiler_does_not_help_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=r"model must be no .* to be optimized: "):
        zoo.optimize(zoo.create(name, vocab_size=9), torch.ones(1, 3, dtype=torch.long))
