"""Recurrent encoder-decoders against the papers' formulas over torch's cells; padding, causality, and decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from small_models import sentences
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import zoo
from layers.embedding import TokenEmbedding
from layers.recurrent import GRU, rows
from layers.testing import Contract, Input, Twin, exercised, fill, influence, initial_distribution, tokens
from layers.weights import WeightMap
from zoo.generation import decoding, speculative
from zoo.seq2seq import BahdanauDecoder, Seq2Seq, seq2seq_bahdanau, seq2seq_luong


def real_tokens(axes):
    """(b, n), True for the real tokens of rows that are padded on the right; each has one at least."""

    def sample(shape, g):
        return torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1), generator=g)

    return Input(tuple(axes.split()), {}, sample)


class Theirs(nn.Module):
    """One table for source, target and output."""

    def __init__(self, a):
        super().__init__()
        self.embedding, self.output = nn.Embedding(a.vocab_size, a.dim, a.padding), nn.Linear(a.dim, a.vocab_size)
        self.output.weight = self.embedding.weight

    def embed(self, tokens):
        return self.embedding(tokens) * self.embedding.embedding_dim**0.5


class Bahdanau(Theirs):
    """arXiv 1409.0473, section 3 and appendix A, over torch's GRU; weights under the paper's names."""

    def __init__(self, a):
        super().__init__(a)
        self.encoder = nn.GRU(a.dim, a.hidden_dim, batch_first=True, bidirectional=True)
        self.w_s = nn.Linear(a.hidden_dim, a.hidden_dim)
        self.w_a, self.u_a = (nn.Parameter(torch.empty(a.hidden_dim, n * a.hidden_dim)) for n in (1, 2))
        self.v_a = nn.Parameter(torch.empty(a.hidden_dim))
        self.cell = nn.GRUCell(a.dim + 2 * a.hidden_dim, a.hidden_dim)
        self.maxout = nn.Linear(3 * a.hidden_dim + a.dim, 2 * a.dim)

    def forward(self, source, target, source_mask):
        logits = []
        for x, ys, n in zip(source, target, source_mask.sum(1).tolist(), strict=True):
            annotations, last = self.encoder(self.embed(x[None, :n]))
            state, written = self.w_s(last[1]).tanh(), []
            for y in self.embed(ys):
                energies = [self.v_a @ torch.tanh(self.w_a @ state[0] + self.u_a @ h) for h in annotations[0]]
                weights = torch.stack(energies).softmax(0)
                context = (weights[:, None] * annotations[0]).sum(0)
                state = self.cell(torch.cat([y, context])[None], state)
                pairs = self.maxout(torch.cat([state[0], context, y])).unflatten(0, (-1, 2))
                written.append(self.output(pairs.max(1).values))
            logits.append(torch.stack(written))
        return torch.stack(logits)


class Luong(Theirs):
    """arXiv 1508.04025, global attention with "general" scores and input feeding, over torch's LSTM and packed sources."""

    def __init__(self, a):
        super().__init__(a)
        self.encoder = nn.LSTM(a.dim, a.hidden_dim // 2, a.layers, batch_first=True, bidirectional=True)
        self.cells = nn.ModuleList(nn.LSTMCell(a.hidden_dim if n else 2 * a.dim, a.hidden_dim) for n in range(a.layers))
        self.w_a, self.w_c = (nn.Linear(n * a.hidden_dim, out, bias=False) for n, out in ((1, a.hidden_dim), (2, a.dim)))

    def forward(self, source, target, source_mask):
        packed = pack_padded_sequence(self.embed(source), source_mask.sum(1), batch_first=True, enforce_sorted=False)
        packed, last = self.encoder(packed)
        memory = pad_packed_sequence(packed, batch_first=True, total_length=source.shape[1])[0]
        states = [tuple(torch.cat([part[2 * n], part[2 * n + 1]], -1) for part in last) for n in range(len(self.cells))]
        fed, logits = memory.new_zeros(len(source), self.w_c.out_features), []
        for y in self.embed(target).unbind(1):
            h = torch.cat([y, fed], -1)
            for n, cell in enumerate(self.cells):
                states[n] = cell(h, states[n])
                h = states[n][0]
            scores = (self.w_a(memory) @ h[..., None])[..., 0].masked_fill(~source_mask, float("-inf"))
            context = (scores.softmax(-1)[:, None] @ memory)[:, 0]
            fed = self.w_c(torch.cat([context, h], -1)).tanh()
            logits.append(self.output(fed))
        return torch.stack(logits, 1)


def cells(ours, theirs):
    """Of cells that torch has as cells, too."""
    return [(f"{ours}.{a.partition('.{i}.')[2]}", f"{theirs}.{b.removesuffix('_l{i}')}") for a, b in rows("cells", "")]


TIED = (
    ("embedding.table.weight", "embedding.weight output.weight"),
    ("bias", "output.bias"),
    *((ours, f"encoder.{theirs}") for ours, theirs in rows("encoder.cells", "") + rows("encoder.backward_cells", "_reverse")),
)
NAMES = {
    seq2seq_bahdanau: WeightMap(
        *TIED,
        *cells("decoder.cells.0", "cell"),
        ("decoder.first", "w_s"),
        ("decoder.attention.query.weight", "w_a", "o i -> o i"),
        ("decoder.attention.key.weight", "u_a", "o i -> o i"),
        ("decoder.attention.score.weight", "v_a", "1 i -> i"),
        ("decoder.output", "maxout"),
    ),
    seq2seq_luong: WeightMap(
        *TIED, *cells("decoder.cells.{i}", "cells.{i}"), ("decoder.attention.key", "w_a"), ("decoder.output", "w_c")
    ),
}


def contract(build, twin, **more):
    return Contract(
        build,
        arguments=dict(
            vocab_size=st.integers(23, 25), dim=st.integers(3, 5), hidden_dim=st.sampled_from([6, 8]), padding=st.integers(0, 12)
        )
        | more,
        inputs=lambda a: dict(
            source=tokens("batch source_length", a.vocab_size, source_length=st.integers(3, 4)),
            target=tokens("batch target_length", a.vocab_size, target_length=st.integers(2, 3)),
            source_mask=real_tokens("batch source_length"),
        ),
        outputs=lambda a, s: ("batch", "target_length", a.vocab_size),
        twins=[Twin("formula", twin, NAMES[build])],
        holds=[
            influence("causal", "target", "target_length", lambda a, i, o: i <= o, 1, cost=2),
            initial_distribution(bias=lambda a, p: (0, 0)),
            exercised(
                dropout="contracts of the blocks draw it",
                target_mask="it hides what a loss leaves out: no twin of torch has one",
            ),
        ],
        invalid=[(dict(dim=0), "dim"), (dict(hidden_dim=0), "hidden_dim"), (dict(dropout=1.0), "dropout")],
        model=True,
        without={
            "compile": "torch.compile leaves the kernel out of its graphs: see tests/layers/test_recurrent.py",
            "batch_rows": "how many rows share a product depends on all lengths, and so does rounding: see the rows alone below",
            "bad_input": "sentences of any number and length will do",
        }
        | dict.fromkeys(
            ("gradcheck", "second_derivatives", "forward_derivatives"),
            "the padding's embedding gets no gradient, as in nn.Embedding, though outputs depend on it",
        ),
    )


bahdanau = contract(seq2seq_bahdanau, Bahdanau)
luong = contract(seq2seq_luong, Luong, layers=st.integers(1, 2))

# -------------------------------------------------------------------------------------------------- padding and decoding

MODELS = pytest.mark.parametrize("name", ["seq2seq_bahdanau", "seq2seq_luong"])


def drawn(name):
    more = dict(layers=2) if name == "seq2seq_luong" else {}
    model = zoo.create(name, vocab_size=19, dim=5, hidden_dim=6, **more).double().eval()
    return fill(model, torch.Generator().manual_seed(3))


@MODELS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask_does_not_matter(name, side):
    """Of source and target, each alone and both."""
    torch.manual_seed(0)
    model, source, target, junk = drawn(name), sentences(2, 5), sentences(2, 4), sentences(2, 3)

    def padded(tokens):
        real = torch.ones_like(tokens, dtype=torch.bool)
        parts = [(junk, ~real[:, :3]), (tokens, real)][:: 1 if side == "left" else -1]
        return (torch.cat(x, 1) for x in zip(*parts, strict=True))

    (longer, real), (after, kept) = padded(source), padded(target)
    expected = model(source, target)
    torch.testing.assert_close(model(longer, target, real), expected)
    torch.testing.assert_close(model(source, after, None, kept)[:, kept[0]], expected)
    torch.testing.assert_close(model(longer, after, real, kept)[:, kept[0]], expected)
    assert not torch.isclose(model(longer, target), expected).all()
    weights = model.alignments(longer, target, real)
    torch.testing.assert_close(weights[..., real[0]], model.alignments(source, target))
    assert not weights[..., ~real[0]].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4).double())


@MODELS
def test_decoding_in_pieces_is_the_whole_target(name):
    """From prompts of unequal lengths, which a mask tells apart, for sources of unequal lengths, and after `select`."""
    torch.manual_seed(0)
    model, source, target = drawn(name), sentences(3, 5), sentences(3, 9)
    real = torch.arange(5) < torch.tensor([[5], [2], [4]])
    begun = torch.arange(9) >= torch.tensor([[0], [2], [3]])
    whole = model(source, target, real, begun).detach()
    decoder = model.start(source, real, capacity=9)
    torch.testing.assert_close(decoder(target[:, :4], mask=begun[:, :4]), whole[:, 3])
    torch.testing.assert_close(decoder(target[:, 4:6]), whole[:, 5])
    torch.testing.assert_close(decoder(target[:, 6:7]), whole[:, 6])
    order = torch.tensor([2, 0, 0, 1])
    decoder.select(order)
    torch.testing.assert_close(decoder(target[order, 7:8]), whole[order, 7])
    decoder.select(torch.tensor([3, 1]))
    torch.testing.assert_close(decoder(target[[1, 0], 8:]), whole[[1, 0], 8])
    with pytest.raises(ValueError, match="capacity of 9"):
        decoder(target[:2, :1])
    for row in range(3):
        alone = model(source[row : row + 1, real[row]], target[row : row + 1, begun[row]])
        torch.testing.assert_close(whole[row, begun[row]], alone[0].detach())


@MODELS
@pytest.mark.parametrize("how", [decoding.greedy, decoding.beam])
def test_a_batch_decodes_as_its_rows_alone(name, how):
    torch.manual_seed(0)
    model, source, prompt = drawn(name), sentences(3, 5), sentences(3, 3)
    real, begun = torch.arange(5) < torch.tensor([[5], [2], [4]]), torch.arange(3) >= torch.tensor([[0], [2], [1]])
    options = dict(max_new_tokens=6, stop=7) | (dict(beams=3) if how is decoding.beam else {})
    batch = how(model.start(source, real, capacity=9), prompt, prompt_mask=begun, **options)
    for row in range(3):
        start = model.start(source[row : row + 1, real[row]], capacity=9)
        alone = how(start, prompt[row : row + 1, begun[row]], **options)
        ours, theirs = (found.tokens[:, 0] if how is decoding.beam else found for found in (batch, alone))
        assert torch.equal(ours[row, : theirs.shape[1]], theirs[0])
        assert not ours[row, theirs.shape[1] :].any()


@MODELS
def test_a_source_without_tokens_gives_numbers(name):
    """A row that is all padding; and gradients are finite."""
    model, source, target = drawn(name), sentences(2, 5), sentences(2, 4)
    logits = model(source, target, torch.arange(5) < torch.tensor([[5], [0]]))
    assert logits.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(logits.sum(), list(model.parameters())))


@MODELS
def test_exported_models_take_any_batch(name):
    model, source, target = zoo.create(name, vocab_size=19, dim=4, hidden_dim=6).double().eval(), sentences(5, 3), sentences(5, 2)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (source[:2], target[:2]), dynamic_shapes={"source": batch, "target": batch})
    torch.testing.assert_close(program.module()(source, target), model(source, target))


@MODELS
def test_dropout_is_for_training(name):
    model = zoo.create(name, vocab_size=19, dim=5, hidden_dim=6, dropout=0.5)
    source, target = sentences(2, 5), sentences(2, 4)
    assert not torch.equal(model.train()(source, target), model(source, target))
    assert torch.equal(model.eval()(source, target), model(source, target))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, s, t: m(s, t[:1]), "target: batch must be 2, got 1"),
        (lambda m, s, t: m(s, t[:, :0]), "target must be of one token a row at least"),
        (lambda m, s, t: m(s.float(), t), "source must be of dtype torch.int64 or torch.int32"),
        (lambda m, s, t: m(s, t, torch.ones(2, 4) > 0), "source_mask: source_length must be 5, got 4"),
        (lambda m, s, t: m(s, t, None, torch.ones(2, 4)), "target_mask must be boolean"),
        (lambda m, s, t: m(s, t + 19), "tokens must be tokens from 0 to 18, got"),
        (lambda m, s, t: m.start(s, capacity=0), "capacity must be positive, got 0"),
        (lambda m, s, t: m.start(s + 19, capacity=3), "source must be tokens from 0 to 18, got"),
        (lambda m, s, t: m.start(s, capacity=3)(t[:1]), "tokens: batch must be 2, got 1"),
        (lambda m, s, t: m.start(s, capacity=4).truncate(1), "does not go back, got 1"),
        (
            lambda m, s, t: speculative.speculate(m.start(s, capacity=9), t, draft=speculative.prompt_lookup(), max_new_tokens=4),
            "decoder must be one that goes back",
        ),
        (lambda m, s, t: zoo.optimize(m, s), "must be a Transformer for its decoding to be compiled, got a Seq2Seq"),
        (lambda m, s, t: seq2seq_luong(19, hidden_dim=7), "hidden_dim must be positive and even, for two directions, got 7"),
        (
            lambda m, s, t: Seq2Seq(TokenEmbedding(19, 5), GRU(5, 6, bidirectional=True), BahdanauDecoder(5, 10, 6)),
            "memory_dim of the decoder must be 12, what the encoder puts out, got 10",
        ),
        (
            lambda m, s, t: Seq2Seq(TokenEmbedding(19, 5), GRU(5, 12), BahdanauDecoder(5, 12, 6)),
            "encoder must be of both directions, got '1 direction'",
        ),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(drawn("seq2seq_luong"), sentences(2, 5), sentences(2, 4))
