"""fastText against `nn.EmbeddingBag`, whose n-grams are listed one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn
from torch.nn import functional

import zoo
from layers.testing import Contract, Input, Twin, exercised, initial_distribution, padding_invariant, tokens
from zoo.fasttext import fasttext


def row_of(gram, buckets):
    """The row of an n-gram, with Python's own integers brought back to 64 bits."""

    def wrapped(value):
        return (value + 2**63) % 2**64 - 2**63

    value = 0
    for token in gram:
        value = wrapped(value * 1_000_003 + token + 1)
    value = wrapped(value * (2 * len(gram) - 1))
    return (value ^ (value >> 17)) % buckets


class Bag(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.grams, self.buckets, self.dropout = a.grams, a.buckets, a.dropout
        self.bag, self.output = nn.EmbeddingBag(a.buckets, a.dim, mode="sum"), nn.Linear(a.dim, a.num_classes)
        self.register_buffer("weights", torch.ones(a.buckets))

    def forward(self, tokens, mask):
        texts = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
        lists = [[t[i : i + n] for n in range(1, self.grams + 1) for i in range(len(t) - n + 1)] for t in texts]
        rows = [torch.tensor(sorted({row_of(gram, self.buckets) for gram in grams})) for grams in lists]
        weights = [self.weights[row] / self.weights[row].norm() for row in rows]
        starts, none = torch.tensor([0, *map(len, rows)])[:-1].cumsum(0), torch.tensor([], dtype=torch.long)
        kept = functional.dropout(torch.cat([*weights, none.to(self.weights)]), self.dropout, self.training)
        return self.output(functional.dropout(self.bag(torch.cat([*rows, none]), starts, kept), self.dropout, self.training))


def real_tokens(axes):
    """(b, n), True for the real tokens of rows that are padded on the right; each has one at least."""

    def sample(shape, g):
        return torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1), generator=g)

    return Input(tuple(axes.split()), {}, sample)


model = Contract(
    fasttext,
    arguments=dict(
        vocab_size=st.integers(23, 25), dim=st.integers(3, 5), grams=st.integers(1, 4), buckets=st.integers(7, 40),
        dropout=st.sampled_from([0.0, 0.3]), num_classes=st.integers(31, 33),
    ),
    inputs=lambda a: dict(tokens=tokens("batch length", a.vocab_size), mask=real_tokens("batch length")),
    outputs=lambda a, s: ("batch", a.num_classes),
    call=lambda model, i: model(i["tokens"], i["mask"].flatten(1) if "mask" in i else None),
    twins=[Twin("torch", Bag, lambda a: fasttext(**a.passed()).maps["torch"])],
    holds=[
        padding_invariant("tokens", "length", 1),
        initial_distribution(embedding__table__weight=lambda a, p: (0.0, 0.1 * a.dim**-0.5)),
        exercised(head="there is one"),
    ],
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    invalid=[
        (dict(vocab_size=0), "vocab_size"), (dict(grams=0), "grams"), (dict(buckets=0), "vocab_size"), (dict(dim=0), "dim"),
        (dict(dropout=1.0), "dropout"), (dict(num_classes=0), "num_classes"), (dict(head="tokens"), "head"),
    ],
    without={"bad_input": "texts of any number and length will do"},
    model=True,
)  # fmt: skip


def test_sizes_and_the_order_of_characters_matter():
    model = zoo.create("fasttext", vocab_size=9, num_classes=4).eval()
    assert tuple(model.embedding.table.weight.shape) == (131_072, 24)
    there, back = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[7, 6, 5, 4]])
    assert not torch.allclose(model(there), model(back))
    single = zoo.create("fasttext", vocab_size=9, grams=1).eval()
    torch.testing.assert_close(single(there), single(back))


def test_half_of_a_hash_table_is_used_by_as_many_n_grams_as_it_has_rows():
    """Rows that a random function would hit: 1 - 1/e of them."""
    model = zoo.create("fasttext", vocab_size=200, grams=5, buckets=4096)
    tokens = torch.randint(200, (1, 4096 // 5 + 2), generator=torch.Generator().manual_seed(0))
    rows, _ = model.hashed(tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert 0.55 < len(rows.unique()) / 4096 < 0.66


def test_weights_are_inverse_document_frequencies():
    """As scikit-learn has them."""
    texts = [[4, 5], [4, 4, 6], [7]]
    model = zoo.create("fasttext", vocab_size=9, grams=1)
    model.weigh(texts)
    found = [model.weights[row_of([token], 131_072)].item() for token in (4, 5, 6, 7, 8)]
    counter = TfidfVectorizer(analyzer=lambda text: text).fit(texts)
    expected = [counter.idf_[counter.vocabulary_[token]] for token in (4, 5, 6, 7)]
    assert found == pytest.approx([*expected, 1 + math.log(4)])


def test_weights_grow_with_what_is_told_of_the_class():
    """The divergence as SciPy has it. 6 is of one class and 4 of both; 8 is of no text."""
    texts, labels = [[4, 5], [4, 4, 6], [7, 6]], [0, 1, 1]
    model = zoo.create("fasttext", vocab_size=9, grams=1, num_classes=2)
    model.weigh(texts)
    plain = model.weights.clone()
    model.weigh(texts, labels)
    rows = [row_of([token], 131_072) for token in (4, 5, 6, 7, 8)]
    p = np.array([2, 4]) / 6
    having = np.array([[1, 1], [1, 0], [0, 2], [0, 1]])
    told = [entropy(count + 2 * p, p) ** 0.5 for count in having]
    expected = [told[n] * plain[rows[n]].item() for n in range(4)]
    assert model.weights[rows].tolist() == pytest.approx([*expected, np.mean(expected)], rel=1e-5)
    too_few, too_large = (texts, labels[:2]), (texts, [0, 1, 2])
    for given, words in ((too_few, "zip"), (too_large, "labels must be from 0 to 1, got 2"), (([], []), "texts must be one")):
        with pytest.raises(ValueError, match=words):
            model.weigh(*given)


def test_what_cannot_be_read_is_named():
    model = zoo.create("fasttext", vocab_size=9)
    with pytest.raises(ValueError, match="tokens must be tokens from 0 to 8, got 9"):
        model(torch.tensor([[9]]))
    with pytest.raises(ValueError, match="tokens must be of one token a row"):
        model(torch.zeros(2, 0, dtype=torch.long))
