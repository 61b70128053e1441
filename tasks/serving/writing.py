"""Texts that are written, a token at a time, as a server gives them out while they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.options import UserError
from tasks.serving import schemas
from tasks.serving.models import BadInput, Served
from tasks.serving.schemas import Schema

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.continuing import Pieces, Text


@dataclass
class Writing:
    """A text that is being written. Its pieces are taken by the thread of the batcher, one of each text in turn.

    text: what the pieces come from, where it shares the model's calls with others.
    """

    prompt: str
    pieces: Pieces
    text: Text | None = None
    tokens: int = 0
    ended: bool = False
    """Whether the text has ended by itself, once all of it is there."""


class Generations(Served):
    task = "text-generation"
    takes = 'a string, or an object with "prompt" and settings'
    example = {"prompt": "Once", "max_new_tokens": 8}
    SETTINGS = (
        "max_new_tokens", "min_new_tokens", "greedy", "temperature", "top_k", "top_p", "min_p", "typical", "top_n_sigma",
        "repetition_penalty", "no_repeat_ngram", "seed",
    )  # fmt: skip

    def load(self) -> None:
        from tasks.text_generation_use import GenerateOptions

        self.model, self.tokenizer, self.context, self.precise = self.options(GenerateOptions).load()
        self.most_together = self.batch if may_share(self.model, self.precision) else 1

    def settings(self) -> dict[str, Schema]:
        """The schema of each."""
        from tasks.text_generation_use import GenerateOptions

        found = schemas.of_options(GenerateOptions, self.SETTINGS)
        limit = found["max_new_tokens"]
        found["max_new_tokens"] = limit | {"maximum": self.text, "default": min(self.text, limit["default"])}
        return found

    def schemas(self) -> tuple[Schema, Schema]:
        prompt = schemas.text(self.text)
        settings = schemas.made_of({"prompt": prompt, **self.settings()}, ["prompt", *self.SETTINGS])
        why = schemas.one_of("stop", "length")
        told = {"text": schemas.text(), "tokens": schemas.integer(minimum=0), "finish_reason": why}
        return schemas.either(prompt, settings), schemas.made_of(told)

    def read(self, value: Any) -> Writing:
        from tasks.text_generation_use import GenerateOptions, text_of

        given = value if isinstance(value, dict) else {"prompt": value}
        if unknown := sorted({*given} - {"prompt", *self.SETTINGS}):
            raise BadInput(f"{unknown[0]!r} is no setting: there are {', '.join(self.SETTINGS)}")
        prompt = self.string(given.get("prompt", ""), "prompt")
        try:
            options = GenerateOptions(**{name: given[name] for name in self.SETTINGS if name in given})
        except UserError as error:
            raise BadInput(str(error).removeprefix("--")) from None
        if "max_new_tokens" not in given:
            options.max_new_tokens = min(self.text, options.max_new_tokens)
        if options.max_new_tokens > self.text:
            raise BadInput(f"max_new_tokens must be {self.text:,} or less, got {options.max_new_tokens:,}")
        text = text_of(self.model, self.tokenizer, self.context, prompt, options, options.seed)
        return Writing(prompt, text.pieces(), text)

    def answer(self, items: Sequence[Writing]) -> list[Any]:
        """The next piece of each text, None where it has ended; an error in the place of a piece is of this text alone."""
        from tasks.continuing import share_calls

        found: list[Any] = []
        with self.precise:
            share_calls([one.text for one in items if one.text is not None], self.most_together)
            for one in items:
                try:
                    found.append(next(one.pieces))
                except StopIteration as stop:
                    one.tokens, one.ended = stop.value or (one.tokens, one.ended)
                    found.append(None)
                except Exception as error:
                    found.append(error)
        return found


def may_share(model: Any, precision: str) -> bool:
    """Whether a text is the same in a batch: half precision rounds too much, and some positions depend on the room there is."""
    from zoo.generation.decoder_only import angles_need_length

    return precision == "fp32" and not angles_need_length(model)


def until(pieces: Pieces, stops: Sequence[str]) -> Pieces:
    """The same, but it ends before the first of these texts to be complete; what may become one is held back until it is not.

    >>> "|".join(until((x for x in ["a", "b", "c", "a", "d"]), ["ad"]))
    '|ab|c||'
    """
    held, tokens = "", 0
    longest = max(map(len, stops))
    while True:
        try:
            held += next(pieces)
        except StopIteration as end:
            yield held
            return end.value or (tokens, False)
        tokens += 1
        if places := [(held.find(stop) + len(stop), held.find(stop)) for stop in stops if stop in held]:
            pieces.close()
            yield held[: min(places)[1]]
            return tokens, True
        kept = next(n for n in range(min(longest - 1, len(held)), -1, -1) if begins(held[len(held) - n :], stops))
        yield held[: len(held) - kept]
        held = held[len(held) - kept :]


def begins(text: str, stops: Sequence[str]) -> bool:
    return any(stop.startswith(text) for stop in stops)
