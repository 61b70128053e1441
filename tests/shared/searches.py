"""Decoders and drawn searches, for the tests of all ways of decoding."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1)
INF = float("inf")


class Whole:
    """A function of all tokens so far and of what belongs to each row, the prompt's mask among it, as a decoder."""

    def __init__(self, forward, **memory):
        self.forward, self.memory, self.tokens = forward, memory, None

    def __call__(self, tokens, mask=None):
        self.memory |= {} if mask is None else {"mask": mask}
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], 1)
        return self.forward(self.tokens, **self.memory)

    def select(self, rows):
        self.tokens = self.tokens[rows]
        self.memory = {name: value[rows] for name, value in self.memory.items()}


class Recurrent:
    """Weights of a model whose next token depends on every earlier one; padding leaves its state alone."""

    def __init__(self, seed, vocab_size, scale=1.5):
        rng = torch.Generator().manual_seed(seed)
        self.vocab_size, self.bias = vocab_size, torch.zeros(vocab_size, dtype=torch.float64)
        self.tokens, self.back, self.out = (
            torch.randn(*shape, generator=rng, dtype=torch.float64) * scale
            for shape in ((vocab_size, 6), (6, 6), (6, vocab_size))
        )

    def decoder(self, mask=None):
        return Whole(self.logits) if mask is None else Whole(self.logits, mask=mask)

    def logits(self, tokens, mask=None):
        state = torch.zeros(len(tokens), 6, dtype=torch.float64)
        for n in range(tokens.shape[1]):
            new = (state @ self.back + self.tokens[tokens[:, n]]).tanh()
            state = new if mask is None or n >= mask.shape[1] else new.where(mask[:, n : n + 1], state)
        return state @ self.out + self.bias


def draw_tokens(rng, *shape, below):
    return torch.randint(below, shape, generator=rng)


def draw_padded(rng, rows, longest, vocab_size):
    """Prompts of 1 to `longest` tokens, padded on the left with tokens of every kind, and the mask that tells them apart."""
    lengths = torch.randint(1, longest + 1, (rows, 1), generator=rng)
    return draw_tokens(rng, rows, longest, below=vocab_size), torch.arange(longest) >= longest - lengths


@st.composite
def searches(draw):
    """A model, padded prompts with their mask, and options that all ways of decoding take."""
    seed, vocab_size = draw(SEEDS), draw(st.integers(2, 9))
    rng = torch.Generator().manual_seed(seed)
    prompt, mask = draw_padded(rng, draw(st.integers(1, 5)), draw(st.integers(1, 4)), vocab_size)
    options = dict(
        max_new_tokens=draw(st.integers(1, 8)),
        stop=draw(st.lists(st.integers(0, vocab_size - 1), max_size=2)),
        pad=draw(st.integers(0, vocab_size - 1)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.7])),
    )
    model = Recurrent(seed, vocab_size)
    model.bias[options["stop"]] = draw(st.sampled_from([0.0, 1.5, 3.0]))
    return model, prompt, mask, options


BEAM_OPTIONS = st.integers(1, 5).flatmap(
    lambda beams: st.fixed_dictionaries(
        dict(
            beams=st.just(beams),
            nbest=st.integers(1, beams),
            length_penalty=st.floats(-2, 2),
            early_stopping=st.sampled_from([True, False, "never"]),
        )
    )
)
SAMPLE_OPTIONS = st.fixed_dictionaries(
    dict(
        temperature=st.floats(0.1, 3),
        top_k=st.none() | st.integers(1, 9),
        top_p=st.floats(0.1, 1),
        min_p=st.floats(0, 0.5),
        seed=st.integers(0, 2**63 - 1),
    )
)
