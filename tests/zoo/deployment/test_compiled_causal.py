"""Compiled decoding of decoder-only models: each step equals the model's, for single rows and for batches."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

import zoo
from zoo.generation import decoding
from zoo.gpt import gpt2, llama

VOCABULARY = 97
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["one row", "batch"])
def models(request):
    """A model and its optimized copy: a windowed Llama whose angles depend on the length, for one row; GPT-2, for batches."""
    torch.manual_seed(0)
    if request.param == "one row":
        scaling = dict(kind="dynamic", factor=2.0, original_length=8)
        model = llama(VOCABULARY, dim=32, heads=4, layers=1, hidden_dim=32, window=5, scaling=scaling)
    else:
        model = gpt2(VOCABULARY, dim=32, heads=4, layers=2, max_positions=64, dropout=0.1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    # without inductor's own products, which take a minute to choose and are tested in test_compiled_decoding.py
    with mock.patch("zoo.deployment.inductor.has_templates", return_value=False):
        return model.eval(), zoo.optimize(model, torch.randint(VOCABULARY, (1 if request.param == "one row" else 3, 4)))


@pytest.mark.parametrize("rows", [1, 3])
def test_every_step_equals_the_models(models, rows):
    """Prompts padded on the left, pieces of any size, rows that are taken several times, and going back; memory grows twice."""
    theirs, ours = (m.start(capacity=60, spare=4) for m in models)
    prompt, mask = torch.randint(VOCABULARY, (rows, 4)), torch.arange(4) >= torch.tensor([[2], [0], [3]])[:rows]
    assert_near(ours(prompt, mask), theirs(prompt, mask))
    for n in range(40):
        if n in (3, 20):
            kept = torch.tensor([rows - 1, 0, 0])[:rows]
            for decoder in (theirs, ours):
                decoder.select(kept)
        if n in (10, 30):
            for decoder in (theirs, ours):
                decoder.truncate(decoder.length - 2)
        new = torch.randint(VOCABULARY, (3 if n % 7 == 5 else 1, rows)).mT  # not contiguous
        assert_near(ours(new), theirs(new))
        assert ours.length == theirs.length
    new = torch.randint(VOCABULARY, (rows, 2))
    assert_near(ours.all_logits(new), theirs.all_logits(new))


def assert_near(got, expected):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()


def test_it_decodes_as_the_model(models):
    for rows in (1, 5):
        prompt = torch.randint(VOCABULARY, (rows, 3))
        found = [decoding.greedy(m.start(capacity=40), prompt, max_new_tokens=36) for m in models]
        assert torch.equal(*found)
        theirs, ours = (decoding.beam(m.start(capacity=40), prompt, beams=3, max_new_tokens=20) for m in models)
        assert torch.equal(theirs.tokens, ours.tokens)


def test_the_program_runs(models):
    """A step that the program is for does not call the model."""
    fast = models[1]
    inner, _, one = fast.programs
    decoder = fast.start(capacity=9)
    decoder(torch.ones(1 if one else 2, 3, dtype=torch.long))
    inner.next_logits = None
    try:
        decoder(torch.ones(1 if one else 2, 1, dtype=torch.long))
        with pytest.raises(TypeError):
            decoder(torch.ones(1 if one else 2, 2, dtype=torch.long))
    finally:
        del inner.next_logits


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda fast: fast.start(capacity=0), "capacity"),
        (lambda fast: fast.start(capacity=3)(torch.zeros(1, 4, dtype=torch.long)), "capacity of 3"),
        (lambda fast: fast.start(capacity=3)(torch.full((1, 1), VOCABULARY)), "tokens"),
        (lambda fast: fast.start(capacity=3)(torch.zeros(1, 1)), "tokens"),
    ],
)
def test_bad_input_is_refused_as_by_the_model(models, call, words):
    for m in models:
        with pytest.raises(ValueError, match=words):
            call(m)
    decoder = models[1].start(capacity=3)
    decoder(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="capacity of 3"):
        decoder(torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.parametrize(
    "example", [torch.zeros(1, 0, dtype=torch.long), torch.full((1, 2), 99), torch.zeros(3, dtype=torch.long)]
)
def test_a_bad_example_is_refused_before_a_minute_is_spent(example):
    with pytest.raises(ValueError, match="example"):
        zoo.optimize(llama(19, dim=8, heads=2, layers=1, hidden_dim=12), example)


def test_steps_in_bfloat16_are_as_near_as_eager_ones():
    """Without inductor's own products, as above."""
    torch.manual_seed(0)
    model = llama(VOCABULARY, dim=32, heads=4, layers=1, hidden_dim=32).eval()
    tokens = torch.randint(VOCABULARY, (1, 12))
    exact = model(tokens)[0]

    def error(one):
        decoder = one.start(capacity=12)
        found = torch.cat([decoder(tokens[:, n : n + 1]) for n in range(12)])
        assert found.dtype == torch.bfloat16
        return (found.float() - exact).norm() / exact.norm()

    with mock.patch("zoo.deployment.inductor.has_templates", return_value=False):
        fast = zoo.optimize(model, tokens[:, :1], dtype=torch.bfloat16)
    assert 1e-4 < error(fast) < 1.5 * error(model.bfloat16())
