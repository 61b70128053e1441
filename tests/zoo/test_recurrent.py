"""Recurrent language models and encoders against `nn.Embedding`, torch's recurrent networks and `nn.Linear`; how they decode."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import zoo
from layers.embedding import TokenEmbedding
from layers.recurrent import GRU, LSTM, RNN, rows
from layers.testing import Contract, Input, Twin, exercised, fill, influence, initial_distribution, padding_invariant, tokens
from layers.weights import WeightMap
from zoo.generation import decoding, speculative
from zoo.heads import LastStates, MaxStates, MeanStates
from zoo.recurrent import RecurrentEncoder, RecurrentLM, encoder, language_model


def real_tokens(axes):
    """(b, n), True for the real tokens of rows that are padded on the right; each has one at least."""

    def sample(shape, g):
        return torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1), generator=g)

    return Input(tuple(axes.split()), {}, sample)


class Torchs(nn.Module):
    """As in PyTorch's example `word_language_model`, over packed rows; the states alone where there is no `decoder`."""

    def __init__(self, kind, vocab_size, dim, width, layers, outputs, bidirectional=False, padding=None):
        super().__init__()
        self.encoder = nn.Embedding(vocab_size, dim, padding)
        network = getattr(nn, kind.__name__)
        self.rnn = network(dim, width, layers, batch_first=True, bidirectional=bidirectional)
        self.decoder = None if outputs is None else nn.Linear(*outputs)
        self.projection, self.scale = None, 1.0

    def states(self, tokens, mask):
        packed = pack_padded_sequence(self.scale * self.encoder(tokens), mask.sum(1), batch_first=True, enforce_sorted=False)
        output, state = self.rnn(packed)
        output = pad_packed_sequence(output, batch_first=True, total_length=tokens.shape[1])[0]
        return output, state[0] if isinstance(state, tuple) else state

    def forward(self, tokens, mask):
        x = self.states(tokens, mask)[0]
        x = x if self.projection is None else self.projection(x)
        return x if self.decoder is None else self.decoder(x)


def call(model, inputs):
    """A mask as `padding_invariant` has it: (b, 1, 1, n)."""
    return model(inputs["tokens"], inputs["mask"].flatten(1) if "mask" in inputs else None)


FREE = {
    "compile": "torch.compile leaves the kernel out of its graphs: see tests/layers/test_recurrent.py",
    "batch_rows": "how many rows share a product depends on all lengths, and so does rounding: see the rows alone below",
    "bad_input": "texts of any number and length will do",
}
PADDED = dict.fromkeys(
    ("gradcheck", "second_derivatives", "forward_derivatives"),
    "the padding's embedding gets no gradient, as in nn.Embedding, though outputs depend on it",
)
sizes = dict(
    kind=st.sampled_from([LSTM, GRU, RNN]),
    vocab_size=st.integers(23, 25),
    dim=st.integers(3, 5),
    hidden_dim=st.sampled_from([None, 6]),
    layers=st.integers(1, 2),
)
inputs = dict(inputs=lambda a: dict(tokens=tokens("batch length", a.vocab_size), mask=real_tokens("batch length")), call=call)


# -------------------------------------------------------------------------------------------------------- language models


def their_language_model(a):
    width = a.hidden_dim or a.dim
    out = width if not a.tied or width == a.dim else a.dim
    model = Torchs(a.kind, a.vocab_size, a.dim, width, a.layers, (out, a.vocab_size))
    model.scale = a.dim**0.5 if a.scale is None else a.scale
    model.projection = nn.Linear(width, a.dim, bias=False) if out != width else None
    if a.tied:
        model.decoder.weight = model.encoder.weight
    return model


lm = Contract(
    language_model,
    arguments=sizes | dict(tied=st.booleans(), scale=st.sampled_from([None, 1.0])),
    outputs=lambda a, s: ("batch", "length", a.vocab_size),
    twins=[Twin("torch", their_language_model, lambda a: language_model(**a.passed()).maps["torch"])],
    holds=[
        influence("causal", "tokens", "length", lambda a, i, o: i <= o, 1, cost=2),
        padding_invariant("tokens", "length", 1),
        initial_distribution({"*bias": "zero where embedding and output are tied, and an output's own is as torch has it"}),
        exercised(dropout="contracts of the layers draw it"),
    ],
    invalid=[
        (dict(layers=0), "layers"),
        (dict(dropout=1.0), "dropout"),
        (dict(dim=0), "dim"),
        (dict(hidden_dim=-1), "hidden_dim"),
    ],
    name="RecurrentLM",
    model=True,
    without=FREE,
    **inputs,
)


# --------------------------------------------------------------------------------------------------------------- encoders


class TorchEncoder(Torchs):
    """Its heads row by row; the last states are those that torch's network itself returns."""

    def __init__(self, a):
        width = 2 * (a.hidden_dim or a.dim)
        outputs = None if a.head is None else (width, a.num_classes or 2)
        super().__init__(a.kind, a.vocab_size, a.dim, width // 2, a.layers, outputs, bidirectional=True, padding=a.padding)
        self.head, self.pooling = a.head, a.pooling

    def forward(self, tokens, mask):
        output, last = self.states(tokens, mask)
        if self.head == "sequence":
            pooled = {
                "last": lambda: torch.cat([last[-2], last[-1]], -1),
                "mean": lambda: torch.stack([row[real].mean(0) for row, real in zip(output, mask, strict=True)]),
                "max": lambda: torch.stack([row[real].max(0).values for row, real in zip(output, mask, strict=True)]),
            }
            output = pooled[self.pooling]()
        found = output if self.decoder is None else self.decoder(output)
        return tuple(found.unbind(-1)) if self.head == "answer" else found


def encoder_outputs(a, s):
    if a.head == "sequence":
        return ("batch", a.num_classes or 2)
    if a.head == "answer":
        return [("batch", "length"), ("batch", "length")]
    return ("batch", "length", 2 * (a.hidden_dim or a.dim) if a.head is None else a.num_classes)


def names(a):
    network = [
        (f"recurrent.{part}{ours.removeprefix('cells')}", f"rnn.{theirs}")
        for part, suffix in (("cells", ""), ("backward_cells", "_reverse"))
        for ours, theirs in rows("cells", suffix)
    ]
    return WeightMap(("embedding.table", "encoder"), ("head.output", "decoder"), *network)


HEADED = dict(kind=sizes["kind"], vocab_size=sizes["vocab_size"], dim=sizes["dim"], hidden_dim=sizes["hidden_dim"])
encoders = Contract(
    encoder,
    arguments=HEADED | dict(
        layers=st.integers(1, 2),
        padding=st.integers(0, 12),
        head=st.sampled_from(["sequence", "sequence", "tokens", "answer", None]),
        num_classes=lambda a: st.integers(13, 15) if a.head in ("sequence", "tokens") else None,
        pooling=st.sampled_from(["last", "mean", "max"]),
    ),
    outputs=encoder_outputs,
    twins=[Twin("torch", TorchEncoder, names)],
    holds=[padding_invariant("tokens", "length", 1), exercised(dropout="contracts of the layers draw it")],
    invalid=[
        (dict(head="pooled"), "head"), (dict(head="tokens", num_classes=0), "num_classes"),
        (dict(head="answer", num_classes=3), "num_classes"), (dict(pooling="first"), "pooling"), (dict(layers=0), "layers"),
    ],
    name="RecurrentEncoder",
    model=True,
    without=FREE | PADDED,
    **inputs,
)  # fmt: skip


@pytest.mark.parametrize("pool", [LastStates, MeanStates, MaxStates])
def test_poolings_see_real_tokens_alone(pool):
    """Wherever they are, whatever stands between them; a row without any gives zeros."""
    torch.manual_seed(0)
    states, block = torch.randn(5, 6, 4), pool(4)
    mask = torch.arange(6) >= torch.tensor([[0], [3], [5], [6], [2]])
    mask[4, 4] = False
    junk = states.masked_fill(~mask[..., None], float("nan"))
    found = block(junk, mask)
    for row in (0, 1, 2, 4):
        torch.testing.assert_close(found[row], block(states[row : row + 1, mask[row]])[0])
    assert not found[3].any()
    assert not torch.isclose(found[1], block(states)[1]).all()
    with pytest.raises(ValueError, match="one token a row at least"):
        block(states[:, :0])


def test_last_states_are_those_of_the_network():
    """Of both directions, on whichever side the padding is."""
    torch.manual_seed(0)
    network, x = LSTM(3, 4, layers=2, bidirectional=True), torch.randn(3, 6, 3)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    for real in (mask, mask.flip(1)):
        output, (h, _) = network(x, mask=real)
        torch.testing.assert_close(LastStates(8)(output, real), h[:, -2:].flatten(1))


@pytest.mark.parametrize("name", ["lstm_small", "bigru_small"])
def test_exported_models_take_any_batch(name):
    model = zoo.create(name, vocab_size=19, dim=4, **dict(head="sequence") if name == "bigru_small" else {}).double().eval()
    text = torch.randint(19, (5, 4))
    program = torch.export.export(model, (text[:2],), dynamic_shapes={"tokens": {0: torch.export.Dim("batch")}})
    torch.testing.assert_close(program.module()(text), model(text))


def test_a_body_takes_another_head(tmp_path):
    model = zoo.create("bilstm_small", vocab_size=19, dim=4, head="sequence", num_classes=3).eval()
    zoo.save(model, tmp_path)
    tagger = zoo.create("bilstm_small", weights=tmp_path, head="tokens", num_classes=5).eval()
    text = torch.randint(19, (2, 4))
    assert torch.equal(tagger.encode(text), model.encode(text))
    assert tagger(text).shape == (2, 4, 5)


# --------------------------------------------------------------------------------------------------------------- decoding

KINDS = pytest.mark.parametrize("kind", [LSTM, GRU, RNN])


def drawn(kind, **options):
    model = language_model(kind, 19, **dict(dim=5, hidden_dim=7, layers=2) | options)
    return fill(model.double().eval(), torch.Generator().manual_seed(3))


def prompts():
    """Of 4, 2 and 1 tokens, padded on the left with tokens of every kind, and the mask that tells them apart."""
    torch.manual_seed(1)
    return torch.randint(19, (3, 4)), torch.arange(4) >= torch.tensor([[0], [2], [3]])


@KINDS
def test_a_state_decodes_as_the_whole_text(kind):
    """In pieces of any size, from prompts of unequal lengths, and after rows have changed places."""
    model, (prompt, mask), new = drawn(kind), prompts(), torch.randint(19, (3, 6))
    text, seen = torch.cat([prompt, new], 1), torch.cat([mask, torch.ones(3, 6, dtype=torch.bool)], 1)
    whole = model(text, seen).detach()
    decoder = model.start(capacity=10)
    torch.testing.assert_close(decoder(prompt, mask), whole[:, 3])
    at = 4
    for size in (1, 2, 1, 1):
        torch.testing.assert_close(decoder(text[:, at : at + size]), whole[:, at + size - 1])
        at += size
    order = torch.tensor([2, 0, 0, 1])
    decoder.select(order)
    assert decoder.length == 9
    torch.testing.assert_close(decoder(text[order, 9:]), whole[order, 9])
    with pytest.raises(ValueError, match=r"capacity of 10, got 10 \+ 1 tokens"):
        decoder(text[order, :1])
    assert not torch.isclose(model.start(capacity=4)(prompt)[1], whole[1, 3]).all()


@KINDS
def test_a_batch_decodes_as_its_rows_alone(kind):
    model, (prompt, mask) = drawn(kind), prompts()
    options = dict(max_new_tokens=6, stop=3, pad=3)
    together = decoding.greedy(model.start(capacity=10), prompt, prompt_mask=mask, **options)
    best = decoding.beam(model.start(capacity=10), prompt, beams=3, prompt_mask=mask, **options)
    streamed = torch.stack(list(decoding.stream(model.start(capacity=10), prompt, prompt_mask=mask, **options)), 1)
    assert torch.equal(streamed, together)
    for row in range(3):
        alone = prompt[row : row + 1, mask[row]]
        found = decoding.greedy(model.start(capacity=10), alone, **options)
        assert decoding.trim(found, 3) == decoding.trim(together[row : row + 1], 3)
        found = decoding.beam(model.start(capacity=10), alone, beams=3, **options)
        assert decoding.trim(found.tokens[0], 3) == decoding.trim(best.tokens[row], 3)
        torch.testing.assert_close(found.scores[0], best.scores[row])


def test_the_best_of_all_hypotheses_is_found():
    """As many beams as there are texts of two tokens: the search is exhaustive, and every score is the model's own."""
    model, prompt = drawn(LSTM), torch.randint(19, (1, 3))
    found = decoding.beam(model.start(capacity=5), prompt, beams=19, nbest=19, max_new_tokens=2, length_penalty=0.0)
    first = torch.arange(19)
    with torch.no_grad():
        logits = model(torch.cat([prompt.expand(19, -1), first[:, None]], 1)).log_softmax(-1)
    totals = logits[0, 2][:, None] + logits[:, 3]
    torch.testing.assert_close(found.scores[0], totals.flatten().topk(19).values)


def test_what_does_not_go_back_says_so():
    model, prompt = drawn(LSTM), torch.randint(19, (2, 4))
    with pytest.raises(ValueError, match="spare must be 0: the state of a recurrent model does not go back, got 3"):
        model.start(capacity=9, spare=3)
    decoder = model.start(capacity=9)
    with pytest.raises(ValueError, match="decoder must be one that goes back, as a CausalLM's, got 'RecurrentDecoding'"):
        speculative.speculate(decoder, prompt, draft=speculative.prompt_lookup(), max_new_tokens=4)
    decoder(prompt)
    decoder.truncate(4)
    with pytest.raises(
        ValueError, match="length must be 4, all there is: the state of a recurrent model does not go back, got 3"
    ):
        decoder.truncate(3)
    with pytest.raises(ValueError, match="no recurrent language model to be optimized"):
        zoo.optimize(model, prompt)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: m.start(capacity=0), "capacity must be positive, got 0"),
        (lambda m: m.start(capacity=3)(torch.full((1, 2), 19)), "tokens from 0 to 18, got 19"),
        (lambda m: m.start(capacity=3)(torch.zeros(1, 2)), "tokens must be of dtype torch.int64 or torch.int32"),
        (lambda m: m(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)), "mask: length must be 3, got 4"),
        (lambda m: m(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3)), "mask must be boolean"),
        (lambda m: RecurrentLM(m.embedding, LSTM(5, 5, bidirectional=True)), "recurrent must be of one direction"),
        (lambda m: RecurrentLM(m.embedding, LSTM(5, 6)), "projection must be a module from 6 to 5"),
        (lambda m: RecurrentEncoder(m.embedding, LSTM(5, 6), dropout=1.0), "dropout must be a probability below 1"),
    ],
)
def test_bad_input_is_refused(ask, words):
    with pytest.raises(ValueError, match=words):
        ask(drawn(LSTM))


# ------------------------------------------------------------------------------------------------------------------ the rest


def test_cells_of_ones_own_make_a_model():
    """A composition: two kinds of layers, which no kernel computes at once."""
    from layers.cells import LSTMCell
    from layers.recurrent import Recurrent

    cells = [LSTMCell(5, 5), LSTMCell(5, 5, bias=False)]
    model = fill(RecurrentLM(TokenEmbedding(19, 5), Recurrent(cells)).double().eval(), torch.Generator().manual_seed(0))
    text = torch.randint(19, (2, 4))
    decoder, whole = model.start(capacity=4), model(text).detach()
    for n in range(4):
        torch.testing.assert_close(decoder(text[:, n : n + 1]), whole[:, n])


def test_dropout_is_where_it_is_said_to_be():
    model = language_model(LSTM, 19, dim=5, layers=2, dropout=0.5)
    assert model.recurrent.dropout == model.dropout.p == 0.5
    assert language_model(LSTM, 19, dim=5, layers=1, dropout=0.5).recurrent.dropout == 0
    text = torch.randint(19, (2, 4))
    assert not torch.equal(model.train()(text), model(text))
    assert torch.equal(model.eval()(text), model(text))


@pytest.mark.parametrize(
    ("name", "vocab_size", "millions"), [("lstm_medium", 10_000, 19.8), ("lstm_large", 10_000, 66.0), ("lstm_small", 2048, 1.05)]
)
def test_named_variants_have_the_papers_sizes(name, vocab_size, millions):
    """Zaremba et al. say 66 million of the large one."""
    with torch.device("meta"):
        model = zoo.create(name, vocab_size=vocab_size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
