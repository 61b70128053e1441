"""Decoders that join; that rows go on as alone is proven with texts, in `tests/tasks/test_continuing.py`."""

from __future__ import annotations

import pytest
import torch

import zoo
from layers.rotary_scaling import DynamicScaling


def begun(model, tokens):
    decoder = model.start(capacity=4)
    decoder(torch.tensor([tokens]))
    return decoder


def test_recurrent_decoders_that_cannot_join_are_refused():
    model = zoo.create("lstm_small", vocab_size=9, dim=8, layers=1)
    decoder = begun(model, [1, 2])
    with pytest.raises(ValueError, match="other must be a RecurrentDecoding that has begun, to one that has"):
        decoder.join(model.start(capacity=4), 4)
    with pytest.raises(ValueError, match="capacity must be 2 at least, which are filled, got 1"):
        decoder.join(begun(model, [3]), 1)
    assert (decoder.rows, decoder.length) == (1, 2)


def test_attentions_with_a_window_do_not_join():
    model = zoo.create("mistral_7b", vocab_size=9, dim=8, heads=2, kv_heads=1, hidden_dim=8, layers=1, window=2)
    one, other = begun(model, [1, 2]), begun(model, [3])
    assert not one.joinable
    with pytest.raises(ValueError, match="other must be a Cache to a Cache"):
        one.join(other, 4)


def test_angles_that_depend_on_the_capacity_do_not_join():
    model = zoo.create("llama_small", vocab_size=9, dim=8, heads=2, layers=1)
    assert begun(model, [1]).joinable
    model.rotary.scaling = DynamicScaling(2.0, 4)
    one, other = begun(model, [1, 2]), begun(model, [3])
    assert not one.joinable
    with pytest.raises(ValueError, match="other must be one whose positions do not"):
        one.join(other, 4)


@pytest.mark.parametrize("name", ["lstm_small", "llama_small"])
def test_padding_of_all_rows_no_longer_counts(name):
    """The longest row has left before: there is no need of room for it."""
    model = zoo.create(name, vocab_size=9, dim=8, layers=1, **dict(heads=2) if name == "llama_small" else {})
    decoder = model.start(capacity=4)
    decoder(torch.tensor([[1, 2, 3, 4], [0, 0, 1, 2]]), mask=torch.tensor([[True] * 4, [False] * 2 + [True] * 2]))
    decoder.select(torch.tensor([1]))
    decoder.join(begun(model, [3]), 3)
    assert (decoder.rows, decoder.length, decoder.capacity) == (2, 2, 3)
    decoder(torch.tensor([[1], [1]]))
    decoder.select(torch.tensor([1]))
    decoder.join(begun(model, [3]), 2)
    assert (decoder.rows, decoder.length) == (2, 2)
