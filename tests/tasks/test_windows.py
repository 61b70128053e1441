"""Windows of texts: training sees every token, measuring counts every token once, whatever the stride."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from layers.testing.drawing import fill
from tasks.data.documents import Document
from tasks.data.tokenizer import train_tokenizer
from tasks.data.windows import IGNORED, Windows, collate, joined, strided
from tasks.language_modelling import foretell, total
from tasks.text_generation import TextGeneration

EOS = 2
texts = st.lists(st.lists(st.integers(3, 9), max_size=12), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(texts, st.integers(1, 7), st.data())
def test_every_token_is_a_label_once(documents, context, data):
    """transformers 30975, 34138, 18887, llama.cpp 2714: strides that count some tokens twice, or never."""
    stride = data.draw(st.integers(1, context))
    windows = strided(documents, EOS, context, stride)
    labels = [label for _, row in windows for label in row if label != IGNORED]
    assert labels == [token for ids in documents for token in [*ids, EOS]]
    for tokens, row in windows:
        assert len(tokens) == len(row) <= context
        assert all(label == IGNORED or tokens[n + 1] == label for n, label in enumerate(row[:-1]))
    # each label but those of a text's first window is foretold out of context - stride tokens and itself
    starts = [n for n, (tokens, _) in enumerate(windows) if tokens[0] == EOS]
    for n, (_, row) in enumerate(windows):
        if n not in starts:
            assert row.index(next(x for x in row if x != IGNORED)) >= min(context - stride, len(row) - 1)
    tokens, labels = collate(windows, 0)
    assert tokens.shape == labels.shape


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_a_round_sees_every_window_once_and_rounds_differ(length, context, batch_size, seed):
    ids = torch.arange(length)
    windows = Windows(ids, min(context, length - 1), seed)
    batches = [windows.batch(numbers) for numbers in windows.batches(0, batch_size)]
    tokens, labels = (torch.cat(side) for side in zip(*batches, strict=True))
    assert torch.equal(labels, tokens + 1)  # what follows each token
    assert len(tokens) == windows.per_round
    assert all(count == 1 for count in Counter(tokens.flatten().tolist()).values())
    left_out = length - 1 - tokens.numel()
    assert 0 <= left_out < windows.context


def test_epochs_go_on_where_the_last_one_ended_and_do_not_depend_on_the_past():
    ids = torch.arange(1000)
    windows, other = Windows(ids, 10, 0, size=30), Windows(ids, 10, 0, size=30)
    numbers = torch.cat([torch.cat(windows.batches(epoch, 7)) for epoch in range(5)])
    assert numbers.tolist() == list(range(150))  # one round has 99
    expected = windows.batch(numbers)
    assert torch.equal(other.batch(numbers[100:130])[0], expected[0][100:130])
    assert not torch.equal(Windows(ids, 10, 1, size=30).batch(numbers[:30])[0], expected[0][:30])
    first, second = expected[0][:99, 0], expected[0][99:, 0]
    assert not torch.equal(first[: len(second)], second)


def test_joined_texts_begin_and_end_with_eos():
    assert joined([[5, 6], [], [7]], EOS).tolist() == [2, 5, 6, 2, 2, 7, 2]


@pytest.mark.parametrize("stride", [0, 5])
def test_a_bad_stride_is_refused(stride):
    with pytest.raises(ValueError, match="stride must be from 1 to the context, 4"):
        strided([[1]], EOS, 4, stride)


def test_what_is_foretold_is_the_mean_over_all_tokens_whatever_the_batches():
    """Against the model's logits on each whole text, which fits into the context; with strides, every token counts."""
    torch.manual_seed(0)
    documents = [Document("a", "abcab cab"), Document("b", "ä\n"), Document("c", "cba" * 9)]
    tokenizer = train_tokenizer([d.text for d in documents], "bpe", 264)
    model = zoo.create("llama_small", vocab_size=tokenizer.vocab_size, dim=16, heads=2, layers=1, hidden_dim=24).double().eval()
    nats = 0.0
    for document in documents:
        ids = torch.tensor([[tokenizer.eos, *tokenizer.encode(document.text), tokenizer.eos]])
        logits = model(ids[:, :-1]).detach().float()
        nats += float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
    for batch_size in (1, 8):
        found = list(foretell(model, tokenizer, documents, context=64, stride=64, batch_size=batch_size))
        whole = total(found)
        assert whole.nats == pytest.approx(nats, rel=1e-6)
        assert whole.bytes == sum(len(d.text.encode()) for d in documents)
        assert whole.bits_per_byte == pytest.approx(nats / 0.6931471805599453 / whole.bytes, rel=1e-6)
    counts = {total(list(foretell(model, tokenizer, documents, context=8, stride=s))).tokens for s in (1, 3, 8)}
    assert counts == {whole.tokens}


# ------------------------------------------------------------------------------------------------------------ packed documents

VOCABULARY = 17
MODELS = {
    "gpt_small": dict(max_positions=12, layers=2, dim=12, heads=2, dropout=0.0),
    "llama_small": dict(layers=2, dim=12, heads=2, window=4),
}


def packing_task(**options):
    """The task without data: what its loss needs."""
    task = object.__new__(TextGeneration)
    task.options = SimpleNamespace(mask_documents=True, **options)
    task.tokenizer, task.ignored, task.bytes_per_token = SimpleNamespace(eos=EOS), IGNORED, {"train": 1.0, "valid": 1.0}
    return task


@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_are_learnt_from_as_if_each_were_alone(name):
    """Loss and gradients of windows, where documents begin in the middle, go on from a window before, and are empty."""
    torch.manual_seed(0)
    model = fill(zoo.create(name, vocab_size=VOCABULARY, **MODELS[name]).double(), torch.Generator().manual_seed(1)).train()
    documents = [torch.randint(3, VOCABULARY, (n,)).tolist() for n in (3, 0, 7, 1, 20)]
    windows = Windows(joined(documents, EOS), 12, seed=0)
    task, (tokens, labels) = packing_task(), windows.batch(torch.arange(3))

    def learnt(parts):
        """Sum of the losses, and its gradients."""
        loss = sum(task.loss(model, part)[0] for part in parts)
        return loss, torch.autograd.grad(loss, list(model.parameters()))

    alone = []
    for row, after in zip(tokens, labels, strict=True):
        begins = sorted({0, *(row == EOS).nonzero()[:, 0].tolist()})
        alone += [(row[a:b][None], after[a:b][None]) for a, b in pairwise([*begins, len(row)])]
    assert len(alone) == 7  # five documents, two of which go on in the next window
    packed, expected = learnt([(tokens, labels)]), learnt(alone)
    torch.testing.assert_close(packed, expected)
    task.options.mask_documents = False
    assert not torch.isclose(learnt([(tokens, labels)])[0], expected[0])


def test_padding_of_measured_windows_is_no_matter():
    """They are computed as ever: rows of one document, without a mask."""
    task, model = packing_task(), zoo.create("gpt_small", vocab_size=VOCABULARY, **MODELS["gpt_small"]).double().eval()
    batch = collate(strided([[3, 4, 5], [6]], EOS, 12, 12), EOS)
    loss = task.loss(model, batch)[0]
    task.options.mask_documents = False
    assert torch.equal(loss, task.loss(model, batch)[0])
