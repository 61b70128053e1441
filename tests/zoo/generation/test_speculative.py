from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import nn

from zoo.generation import decoding
from zoo.generation.past import Past
from zoo.generation.sampling import Sampler, row_seeds
from zoo.generation.speculative import DraftModel, followed, prompt_lookup, speculate
from zoo.gpt import gpt2, llama

VOCAB = 11


def model_of(kind, seed=0):
    torch.manual_seed(seed)
    sizes = dict(dim=16, heads=4, layers=2, hidden_dim=24)
    model = gpt2(VOCAB, max_positions=64, dropout=0.0, **sizes) if kind == "gpt2" else llama(VOCAB, **sizes, kv_heads=2, window=4)
    for p in model.parameters():
        nn.init.normal_(p, std=0.6)
    return model.double().eval()


def drafts(kind):
    """Some that know nothing, some that are right, one that is right for a while."""
    return {
        "lookup": prompt_lookup(2),
        "itself": DraftModel(model_of(kind), 60),
        "another": DraftModel(model_of(kind, seed=1), 60),
        "fewer than asked for": lambda texts, k: torch.full((len(texts), min(k, 1)), 3),
    }


@pytest.mark.parametrize("stop", [(), (3, 5)])
@pytest.mark.parametrize("draft", drafts("gpt2"))
@pytest.mark.parametrize("kind", ["gpt2", "windowed"])
def test_tokens_are_those_of_greedy_search(kind, draft, stop):
    """For prompts of unequal lengths, whatever is proposed, and however many tokens at a time."""
    model = model_of(kind)
    prompt, mask = torch.randint(VOCAB, (3, 5)), torch.arange(5) >= torch.tensor([[0], [2], [4]])
    options = dict(max_new_tokens=20, stop=stop, prompt_mask=mask, pad=1)
    expected = decoding.greedy(model.start(capacity=25), prompt, **options)
    for lookahead in (1, 4, 30):
        decoder = model.start(capacity=25, spare=lookahead)
        found = speculate(decoder, prompt, draft=drafts(kind)[draft], lookahead=lookahead, **options)
        assert torch.equal(found.tokens, expected)
        if draft == "itself" and lookahead == 4 and not stop:
            assert found.calls == 1 + 19 / 5 + 0.2  # of 20 tokens, the first and five a call
        if draft == "another" and lookahead == 4:
            assert found.calls <= expected.shape[1]


class Chain(Past):
    """A model that looks at the last token only, and is quick to ask thousands of times."""

    def __init__(self, table):
        super().__init__(len(table), (), None)
        self.table, self.at = table, 0

    @property
    def length(self):
        return self.at

    def __call__(self, tokens, mask=None):
        return self.all_logits(tokens)[:, -1]

    def all_logits(self, tokens):
        self.at += tokens.shape[1]
        return self.table[tokens]

    def truncate(self, length):
        self.at = length


@pytest.mark.parametrize("proposed", [[1, 2], [0], [2, 2, 2], []])
def test_samples_have_the_models_law(proposed):
    """3,000 times three tokens: the frequency of each text is within five standard errors of its probability."""
    table = torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 1.5], [1.0, -0.5, 0.0]], dtype=torch.float64)
    sampler, runs, seen, calls = Sampler(temperature=0.8, seed=0), 3000, Counter(), Counter()
    options = dict(draft=lambda texts, k: torch.tensor([proposed[:k]], dtype=torch.long), lookahead=3, max_new_tokens=3)
    for seed in row_seeds(5, runs):
        sampler.seed, sampler.seeds = seed[None], None
        found = speculate(Chain(table), torch.tensor([[0]]), sampler=sampler, **options)
        seen[tuple(found.tokens[0].tolist())] += 1
        calls[found.calls] += 1
    p = (table / 0.8).softmax(-1)
    for text in itertools.product(range(3), repeat=3):
        expected = float(p[0, text[0]] * p[text[0], text[1]] * p[text[1], text[2]])
        assert abs(seen[text] - runs * expected) <= 5 * (runs * expected * (1 - expected)) ** 0.5 + 1, text
    assert set(calls) == ({3} if not proposed else {2, 3})  # where a proposal was kept, a call was spared


def test_a_seed_repeats_and_rows_do_not_disturb_each_other():
    model, prompt = model_of("gpt2"), torch.randint(VOCAB, (3, 4))

    def drawn(prompt, seed):
        options = dict(draft=prompt_lookup(), lookahead=3, max_new_tokens=12, sampler=Sampler(seed=seed))
        return speculate(model.start(capacity=16), prompt, **options).tokens

    assert torch.equal(drawn(prompt, 3), drawn(prompt, 3))
    assert not torch.equal(drawn(prompt, 3), drawn(prompt, 4))


def test_lookup_finds_the_last_place():
    assert followed([1, 2, 3, 1, 2, 4, 1, 2], 2, 3) == [4, 1, 2]
    assert followed([1, 2, 3], 2, 3) == ()
    assert followed([7, 7], 3, 2) == [7]
    assert prompt_lookup(2)([[1, 2, 3], [5, 6, 5]], 2).tolist() == [[3, 3], [6, 5]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(lookahead=0), "lookahead"),
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(stop=(99,)), "stop"),
        (dict(decoder=lambda tokens: tokens), "decoder"),
    ],
)
def test_bad_input_is_refused(options, words):
    prompt = torch.randint(VOCAB, (1, 2))
    given = dict(decoder=model_of("gpt2").start(capacity=9), draft=prompt_lookup(), max_new_tokens=4) | options
    with pytest.raises(ValueError, match=words):
        speculate(given.pop("decoder"), prompt, **given)
    with pytest.raises(ValueError, match="longest"):
        prompt_lookup(0)
