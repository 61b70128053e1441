"""How translations are searched for: as usual here, or as a published model's folder says.

Proven against Hugging Face's `generate` with the settings of the model's own folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from tasks.data.tokenizer import TextTokenizer
    from zoo.generation.decoding import Decoder

FILES = ("generation_config.json", "config.json")
"""The first one that is there says it all."""
USED = {
    "num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "max_length": None, "max_new_tokens": None,
    "forced_eos_token_id": None, "bad_words_ids": None, "renormalize_logits": False,
}  # fmt: skip
"""Settings, and what they are where nobody says."""
UNUSED = {
    "do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": None, "forced_bos_token_id": None,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "suppress_tokens": None, "begin_suppress_tokens": None,
    "sequence_bias": None, "exponential_decay_length_penalty": None, "guidance_scale": None,
}  # fmt: skip
"""Others that would change translations, and are told of."""


@dataclass(frozen=True)
class Generation:
    """beams, length_penalty and longest are defaults, for callers to choose others.

    longest:     most tokens of a translation; None where nobody says.
    whole:       it is as long as `longest` allows; else it ends at about three times its source's length too.
    forced_eos:  the last token that it may have is `eos`, whatever the model holds likely.
    forbidden:   tokens that never come, besides padding; their probability goes to the others if `renormalize`, else to none.
    told:        all of it in one line, empty where nobody has said anything.
    """

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: Any = False
    longest: int | None = None
    whole: bool = False
    forced_eos: bool = False
    forbidden: tuple[int, ...] = ()
    renormalize: bool = False
    told: str = ""


USUAL = Generation()


def generation_of(kept: Any, tokenizer: TextTokenizer) -> Generation:
    """What the files of a published model say, by name; `USUAL` without any. Errors: `DataError` for what cannot be."""
    from tasks.data import DataError

    found = [name for name in FILES if isinstance(kept, Mapping) and isinstance(kept.get(name), Mapping)]
    if not found:
        return USUAL
    name, said = found[0], kept[found[0]]
    used, unused = ({key: said[key] for key in table if said.get(key) not in (table[key], None)} for table in (USED, UNUSED))
    for key, value in used.items():
        right = expected(key, value, tokenizer)
        if right:
            raise DataError(f"{name}: {key} must be {right}, got {value!r}")
    words = used.get("bad_words_ids", [])
    if several := [row for row in words if len(row) > 1]:
        unused["bad_words_ids of several tokens"] = several
    told = [f"decoding as {name} says: {listed(used)}"] if used else []
    return Generation(
        beams=used.get("num_beams", 1), length_penalty=used.get("length_penalty", 1.0), whole=True,
        longest=used.get("max_new_tokens", used.get("max_length", 1) - 1) or None,  # max_length counts the token to start with
        early_stopping=used.get("early_stopping", False), forced_eos="forced_eos_token_id" in used,
        forbidden=tuple(row[0] for row in words if len(row) == 1 and row[0] != tokenizer.eos),
        renormalize="renormalize_logits" in used,
        told="; ".join([*told, *([f"not used of {name}: {listed(unused)}"] if unused else [])]),
    )  # fmt: skip


def expected(key: str, value: Any, tokenizer: TextTokenizer) -> str:
    """What the setting must be, in words, if this value is not."""
    whole = type(value) is int and value <= 10**6
    number = type(value) in (int, float) and math.isfinite(value)
    tokens = isinstance(value, list) and all(are_tokens(row, tokenizer.vocab_size) for row in value)
    right, words = {
        "num_beams": (whole and value >= 1, "a whole number from 1"),
        "max_length": (whole and value >= 2, "a whole number from 2"),
        "max_new_tokens": (whole and value >= 1, "a whole number from 1"),
        "length_penalty": (number, "a number"),
        "early_stopping": (value in (True, "never"), 'true, false or "never"'),
        "forced_eos_token_id": (value in (tokenizer.eos, [tokenizer.eos]), f"the tokenizer's eos, {tokenizer.eos}"),
        "bad_words_ids": (tokens, f"lists of tokens from 0 to {tokenizer.vocab_size - 1}"),
        "renormalize_logits": (value is True, "true or false"),
    }[key]
    return "" if right else words


def are_tokens(row: Any, vocab_size: int) -> bool:
    return isinstance(row, list) and bool(row) and all(type(n) is int and 0 <= n < vocab_size for n in row)


def listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


class Constrained:
    """A decoder that counts its steps, some of whose tokens are impossible, and whose last step, if told, gives one token.

    excluded: tokens that are impossible; their probability goes to the others. last: of step number `most`, from 1.
    """

    def __init__(self, decoder: Decoder, most: int, excluded: Sequence[int] = (), last: int | None = None) -> None:
        self.decoder, self.most, self.excluded, self.last, self.steps = decoder, most, list(excluded), last, 0

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = self.decoder(tokens) if mask is None else self.decoder(tokens, mask=mask)
        self.steps += 1
        if self.last is not None and self.steps == self.most:
            logits = logits.new_full(logits.shape, -math.inf)
            logits[:, self.last] = 0.0
        elif self.excluded:
            logits = logits.clone()
            logits[:, self.excluded] = -math.inf
        return logits

    def select(self, rows: Tensor) -> None:
        self.decoder.select(rows)
