"""Encoder-decoders with padding, with rows of unequal pasts, and in pieces; what they refuse."""

from __future__ import annotations

import pytest
import torch
from small_models import sentences
from torch import nn

import zoo
from layers import masks
from layers.positions import ALiBi, LearnedPositions, RelativeBias, Rotary
from layers.rotary_scaling import Llama3Scaling
from zoo.generation import decoding as decode
from zoo.generation.sampling import row_seeds
from zoo.transformer import build


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(19, dim=12, heads=3, hidden_dim=20, layers=2, dropout=0.3, bias=True).double().eval()


@pytest.mark.parametrize("name", ["learned", "transformer_base", "transformer_small"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask_does_not_matter(name, side):
    """Of source and target, each alone and both; on the right to the bit, for nothing else is computed of what is real."""
    model, source, target, junk = positioned(name), sentences(2, 5), sentences(2, 4), sentences(2, 3)

    def padded(tokens):
        real = torch.ones_like(tokens, dtype=torch.bool)
        parts = [(junk, ~real[:, :3]), (tokens, real)][:: 1 if side == "left" else -1]
        return (torch.cat(x, 1) for x in zip(*parts, strict=True))

    (longer, real), (after, kept) = padded(source), padded(target)
    expected = model(source, target)
    torch.testing.assert_close(model(longer, target, real), expected)
    torch.testing.assert_close(model(source, after, None, kept)[:, kept[0]], expected)
    torch.testing.assert_close(model(longer, after, real, kept)[:, kept[0]], expected)
    assert not torch.allclose(model(longer, target), expected)
    decodings = [model.start(longer, real, capacity=4), model.start(source, capacity=4)]
    torch.testing.assert_close(*(decoding(target) for decoding in decodings))


def test_padding_on_the_right_changes_no_bits(model):
    """Nor does a row without any real token, on whichever side its padding is taken to be."""
    source, target = sentences(3, 6), sentences(3, 4)
    real = torch.arange(6) < torch.tensor([[6], [2], [0]])
    places = torch.arange(6)
    with torch.no_grad():
        expected = model.decode(target, model.encode(source, real, places), None, real)
        assert torch.equal(model.decode(target, model.encode(source, real), None, real), expected)
    assert expected.isfinite().all()


def test_target_padding_on_the_right_does_not_matter(model):
    source, target = sentences(2, 5), sentences(2, 6)
    expected = model(source, target[:, :4])
    torch.testing.assert_close(model(source, target)[:, :4], expected)
    mask = torch.arange(6).expand(2, 6) < 4
    torch.testing.assert_close(model(source, target, target_mask=mask)[:, :4], expected)


def test_decoding_in_pieces_equals_the_whole(model):
    """Every way to cut five target tokens, with sources of unequal length."""
    source, target = sentences(3, 6), sentences(3, 5)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    with torch.no_grad():
        whole = model(source, target, mask)
    for cuts in range(16):
        ends = [i + 1 for i in range(4) if cuts >> i & 1] + [5]
        decoding, start = model.start(source, mask, capacity=5), 0
        for end in ends:
            torch.testing.assert_close(decoding(target[:, start:end]), whole[:, end - 1])
            start = end


@pytest.mark.parametrize("rows", [[2, 0, 1], [0, 0, 1, 1, 2, 2], [1], [0, 1, 2]])
def test_rows_can_be_selected_while_decoding(model, rows):
    source, target = sentences(3, 6), sentences(3, 5)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    decoding = model.start(source, mask, capacity=5)
    decoding(target[:, :2])
    decoding.select(torch.tensor(rows))
    rest = sentences(len(rows), 2)
    with torch.no_grad():
        expected = model(source[rows], torch.cat([target[rows, :2], rest], 1), mask[rows])[:, -1]
    torch.testing.assert_close(decoding(rest), expected)


def test_two_decodings_do_not_disturb_each_other(model):
    source, other, target = sentences(2, 5), sentences(2, 5), sentences(2, 3)
    alone = model.start(source, capacity=3)
    expected = [alone(target[:, i : i + 1]) for i in range(3)]
    first, second = model.start(source, capacity=3), model.start(other, capacity=3)
    for i in range(3):
        assert torch.equal(first(target[:, i : i + 1]), expected[i])
        assert not torch.equal(second(target[:, i : i + 1]), expected[i])


def test_too_long_a_decoding_is_an_error(model):
    decoding = model.start(sentences(2, 5), capacity=3)
    with pytest.raises(ValueError, match="capacity of 3"):
        decoding(sentences(2, 4))


HEAD = 4


def positioned(name, vocab_size=19):
    """A decoder with every kind of position that there is."""
    if name.startswith("transformer"):
        model = zoo.create(name, vocab_size=vocab_size, dim=12, heads=3, hidden_dim=20, layers=2)
    else:
        model = build(vocab_size, dim=12, heads=3, hidden_dim=20, layers=2)
        model.positions = LearnedPositions(20, 12) if name == "learned" else None
        for block in model.decoder:
            own = block.attention.sublayer
            if name == "scaled rotary":
                own.positions = Rotary(HEAD, 50.0, scaling=Llama3Scaling(original_length=8))
            elif name == "ALiBi":
                own.position_bias = ALiBi(3)
            elif name == "relative bias":
                own.position_bias = RelativeBias(3, buckets=6, max_distance=9, bidirectional=False)
            elif name == "windowed":
                own.window, own.positions = 3, Rotary(HEAD)
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model.double().eval()


DECODERS = ("learned", "scaled rotary", "ALiBi", "relative bias", "windowed", "transformer_base", "transformer_small")


@pytest.fixture
def prompts():
    """Three of 4, 2 and 1 tokens, padded on the left with tokens of every kind, and the mask that tells them apart."""
    torch.manual_seed(0)
    return sentences(3, 4), torch.arange(4) >= torch.tensor([[0], [2], [3]])


@pytest.mark.parametrize("name", DECODERS)
def test_padding_on_the_left_does_not_matter(name, prompts):
    """Decoded with a mask, through `select`, and decoded at once with positions given: as each row alone."""
    model, source, (prompt, real) = positioned(name), sentences(3, 5), prompts
    more = sentences(3, 3)
    decoding, rows = model.start(source, capacity=9), torch.tensor([2, 1, 1])
    found = [decoding(prompt, mask=real)]
    found += [decoding(more[:, :2]), decoding(more[:, 2:])]
    decoding.select(rows)
    found.append(decoding(more[rows, :1]))
    whole, mask = torch.cat([prompt, more], 1), torch.cat([real, real.new_ones(3, 3)], 1)
    with torch.no_grad():
        memory = model.encode(source)
        given = model.logits(model.decode(whole, memory, mask, positions=masks.padded_positions(mask)))
    for row in range(3):
        alone = model.start(source[row : row + 1], capacity=9)
        tokens = whole[row : row + 1, mask[row]]
        expected = [alone(tokens[:, :-3]), alone(tokens[:, -3:-1]), alone(tokens[:, -1:])]
        for ours, theirs in zip(found, expected, strict=False):
            torch.testing.assert_close(ours[row], theirs[0])
        torch.testing.assert_close(given[row, [3, 5, 6]], torch.cat(expected))
        following = alone(more[row : row + 1, :1])
        for n in (rows == row).nonzero()[:, 0]:
            torch.testing.assert_close(found[3][n], following[0])
    unmasked = model.start(source, capacity=9)(prompt)
    assert not torch.isclose(unmasked[1:], found[0][1:]).all(-1).any()
    torch.testing.assert_close(unmasked[0], found[0][0])


@pytest.mark.parametrize("name", ["learned", "transformer_base", "transformer_small"])
@pytest.mark.parametrize("how", [decode.greedy, decode.beam, decode.sample])
def test_a_batch_of_padded_prompts_gives_each_row_what_it_gives_alone(name, how, prompts):
    model, source, (prompt, real) = positioned(name), sentences(3, 5), prompts
    seeds = row_seeds(5, 3)
    options = {decode.greedy: {}, decode.beam: dict(beams=3), decode.sample: dict(temperature=2.0)}[how]
    for stop in ((), 7):
        common = dict(max_new_tokens=6, stop=stop, repetition_penalty=1.3, **options)
        seeded = [dict(seed=seeds[rows]) if how is decode.sample else {} for rows in ([0, 1, 2], [0], [1], [2])]
        batch = how(model.start(source, capacity=12), prompt, prompt_mask=real, **common, **seeded[0])
        for row in range(3):
            start = model.start(source[row : row + 1], capacity=12)
            alone = how(start, prompt[row : row + 1, real[row]], **common, **seeded[row + 1])
            ours, theirs = (found.tokens[:, 0] if how is decode.beam else found for found in (batch, alone))
            assert torch.equal(ours[row, : theirs.shape[1]], theirs[0])
            assert not ours[row, theirs.shape[1] :].any()


def test_packed_targets_are_as_each_document_alone(model):
    source, target = sentences(2, 5), sentences(2, 7)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 1, 1]])
    with torch.no_grad():
        memory, x = model.encode(source), model.embed(target, masks.packed_positions(documents))
        for block in model.decoder:
            x = block(x, memory, mask=masks.packed(documents))
        for row in range(2):
            for document in documents[row].unique():
                own = documents[row] == document
                alone = model.decode(target[row : row + 1, own], memory[row : row + 1])
                torch.testing.assert_close(x[row, own], alone[0])


def test_a_source_padded_on_the_left_is_as_its_tokens_alone(model):
    source, real = sentences(2, 6), torch.arange(6) >= torch.tensor([[0], [3]])
    with torch.no_grad():
        memory = model.encode(source, real)
        torch.testing.assert_close(memory, model.encode(source, real, masks.padded_positions(real)))
        for row in range(2):
            torch.testing.assert_close(memory[row, real[row]], model.encode(source[row : row + 1, real[row]])[0])


BAD_FORWARDS = [
    (dict(target=sentences(1, 4)), "target: batch must be 2, got 1"),
    (dict(source=sentences(1, 5)), "target: batch must be 1, got 2"),
    (dict(source=sentences(5)), "source must have 2 axes"),
    (dict(target=sentences(2, 4).float()), "target must be of dtype torch.int64 or torch.int32, got torch"),
    (dict(source=sentences(2, 5).double()), "source must be of dtype torch.int64 or torch.int32, got torch"),
    (dict(source_mask=torch.ones(1, 5) > 0), "source_mask: batch must be 2, got 1"),
    (dict(source_mask=torch.ones(2, 4) > 0), "source_mask: source_length must be 5, got 4"),
    (dict(source_mask=torch.ones(2, 5)), "source_mask must be boolean"),
    (dict(target_mask=torch.ones(1, 4) > 0), "target_mask: batch must be 2, got 1"),
    (dict(target_mask=torch.ones(2, 5) > 0), "target_mask: target_length must be 4, got 5"),
    (dict(target_mask=torch.ones(2, 4)), "target_mask must be boolean"),
    (dict(target=sentences(2, 4) + 19), "tokens must be tokens from 0 to 18, got"),
]


@pytest.mark.parametrize(("changed", "words"), BAD_FORWARDS)
def test_inputs_that_do_not_agree_are_named(model, changed, words):
    inputs = dict(source=sentences(2, 5), target=sentences(2, 4)) | changed
    with pytest.raises(ValueError, match=words):
        model(**inputs)


def test_positions_that_do_not_fit_are_named(model):
    with pytest.raises(ValueError, match="positions: batch must be 2, got 3"):
        model.encode(sentences(2, 5), positions=torch.zeros(3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="positions: target_length must be 4, got 5"):
        model.decode(sentences(2, 4), model.encode(sentences(2, 5)), positions=torch.arange(5))
