"""Trained models as a server uses them: what a request may ask, checked before it waits, and how a batch of it is answered.

Loading, reading and answering are those of the commands that use a run, `predict`, `translate` and `generate`.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.options import UserError
from tasks.saved import program_of

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.data.picture_files import Budget


class BadInput(Exception):
    """What a client can mend, in one sentence."""


@dataclass
class Served:
    """A run, loaded. What `read` gives of an input goes into `answer`, many at a time, in one thread.

    text: most characters of a text. batch: inputs at a time.
    """

    task: ClassVar[str] = ""
    takes: ClassVar[str] = "a string"
    """An input, in words."""
    folder: Path
    device: str
    precision: str
    text: int
    batch: int

    def __post_init__(self) -> None:
        self.load()

    def options(self, kind: type, **more: Any) -> Any:
        place = {"name": self.folder.name, "runs_dir": str(self.folder.parent)}
        return kind(**place, device=self.device, precision=self.precision, **more)

    def load(self) -> None:
        raise NotImplementedError

    def read(self, value: Any) -> Any:
        """An input, as it came in JSON or as bytes, for `answer`. Errors: `BadInput`, `UserError`."""
        raise NotImplementedError

    def answer(self, items: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def string(self, value: Any, name: str = "") -> str:
        if not isinstance(value, str):
            raise BadInput(f"{name or 'an input'} must be {'a string' if name else self.takes}, got {shown(value)}")
        if len(value) > self.text:
            raise BadInput(f"{name or 'an input'} must have {self.text:,} characters at most, got {len(value):,}")
        return value


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Pictures(Served):
    task = "image-classification"
    takes = "a picture in base64"
    budget: Budget

    def load(self) -> None:
        from tasks.data.picture_files import Budget
        from tasks.image_predictions import PredictOptions, load_classifier

        options = self.options(PredictOptions)
        self.model, self.context, self.preprocess, self.classes = load_classifier(self.folder, options)
        self.budget, self.top = Budget(strict=True), options.top

    def read(self, value: Any) -> Any:
        from tasks.data import DataError
        from tasks.data.picture_files import quiet
        from tasks.data.pictures import read_pixels

        if isinstance(value, str):
            try:
                value = base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
            except (binascii.Error, ValueError):
                raise BadInput("an input must be a picture in base64, got something else") from None
        if not isinstance(value, bytes):
            raise BadInput(f"an input must be {self.takes}, got {shown(value)}")
        try:
            with quiet():
                return read_pixels(io.BytesIO(value), self.preprocess, self.budget)
        except DataError as error:
            raise BadInput(str(error)) from None

    def answer(self, items: Sequence[Any]) -> list[Any]:
        import torch

        from tasks.image_scores import log_probabilities
        from tasks.text_classification_use import answers

        logs = log_probabilities(self.model, self.context, self.preprocess.normalise(torch.stack([*items])))
        rows = answers(range(len(items)), logs.exp(), self.classes, min(self.top, len(self.classes)))
        return [{key: row[key] for key in ("label", "scores")} for row in rows]


class Texts(Served):
    task = "text-classification"

    def load(self) -> None:
        from tasks.text_classification_use import UseOptions

        self.reader, self.classes, self.precise = self.options(UseOptions).load()
        self.pairs = self.reader.model.config["texts"] == 2
        if self.pairs:
            self.takes = "two strings in a list"  # type: ignore

    def read(self, value: Any) -> Any:
        if not self.pairs:
            return (self.string(value),)
        if not isinstance(value, list) or len(value) != 2:
            raise BadInput(f"an input must be {self.takes}, got {shown(value)}")
        return tuple(self.string(one, "a text of the two") for one in value)

    def answer(self, items: Sequence[Any]) -> list[Any]:
        from tasks.text_classification_use import answers
        from tasks.text_task import log_probabilities

        with self.precise:
            logs = log_probabilities(self.reader, self.reader.model, items, self.batch)
        rows = answers(items, logs.exp(), self.classes, len(self.classes))
        return [{key: row[key] for key in ("label", "scores")} for row in rows]


class Tokens(Served):
    task = "token-classification"

    def load(self) -> None:
        from tasks.token_classification_use import PredictOptions

        self.reader, self.precise = self.options(PredictOptions).load()

    def read(self, value: Any) -> Any:
        from tasks.data.tagged import Tagged, words_of

        return Tagged(self.string(value), words_of(value), ())

    def answer(self, items: Sequence[Any]) -> list[Any]:
        from tasks.token_classification_use import row
        from tasks.token_labelling import label

        with self.precise:
            found = label(self.reader, items, self.batch)
        return [{"spans": row(*pair)["spans"]} for pair in zip(items, found, strict=True)]


class Questions(Served):
    task = "question-answering"
    takes = 'an object with "question" and "context", strings'

    def load(self) -> None:
        from tasks.question_answering_use import PredictOptions

        self.how = self.options(PredictOptions)
        self.reader, self.precise = self.how.load()

    def read(self, value: Any) -> Any:
        from tasks.data.questions import Question

        if not isinstance(value, dict) or {*value} != {"question", "context"}:
            raise BadInput(f"an input must be {self.takes}, got {shown(value)}")
        question, context = (self.string(value[name], name) for name in ("question", "context"))
        if not question.strip() or not context.strip():
            raise BadInput("question and context must have some text")
        return Question("", question, context)

    def answer(self, items: Sequence[Any]) -> list[Any]:
        from tasks.answering import answer, row

        with self.precise:
            found = answer(self.reader, items, n_best=self.how.n_best, max_answer=self.how.max_answer, batch_size=self.batch)
        rows = [row(*pair, self.reader.model.config["threshold"]) for pair in zip(items, found, strict=True)]
        return [{key: one[key] for key in ("answer", "score", "start", "end", "nbest")} for one in rows]


class Translations(Served):
    task = "translation"

    def load(self) -> None:
        from tasks.generation_config import generation_of
        from tasks.translation_options import TranslateOptions
        from tasks.translation_use import load_run, trained_on

        self.how = self.options(TranslateOptions, batch_size=self.batch)
        self.model, self.tokenizer, folder, self.precise = load_run(self.how)
        self.trained = trained_on(folder)
        self.generation = generation_of(self.model.config.get("huggingface"), self.tokenizer)
        self.how.beam = self.generation.beams

    def read(self, value: Any) -> Any:
        from tasks.translation_use import readable

        if "\n" in self.string(value):
            raise BadInput("an input must be one line: give lines as inputs of their own")
        return readable([value], "an input", None, self.tokenizer, self.trained, self.generation)

    def answer(self, items: Sequence[Any]) -> list[Any]:
        from tasks.translation_use import translated

        sentences, longest = [sentence for (sentence,), _ in items], items[0][1]
        with self.precise:
            found = translated(self.model, self.tokenizer, sentences, self.how, self.generation, longest=longest)
        return [{"translation": best.text} for best, *_ in found]


@dataclass
class Writing:
    """A text that is being written. Its pieces are taken by the thread of the batcher, one of each text in turn."""

    prompt: str
    pieces: Generator[str, None, tuple[int, bool]]
    tokens: int = 0
    ended: bool = False
    """Whether the text has ended by itself, once all of it is there."""


class Generations(Served):
    task = "text-generation"
    takes = 'a string, or an object with "prompt" and settings'
    SETTINGS = (
        "max_new_tokens", "min_new_tokens", "greedy", "temperature", "top_k", "top_p", "min_p", "typical", "top_n_sigma",
        "repetition_penalty", "no_repeat_ngram", "seed",
    )  # fmt: skip

    def load(self) -> None:
        from tasks.text_generation_use import GenerateOptions

        self.model, self.tokenizer, self.context, self.precise = self.options(GenerateOptions).load()

    def read(self, value: Any) -> Writing:
        from tasks.text_generation_use import GenerateOptions, pieces

        given = value if isinstance(value, dict) else {"prompt": value}
        if unknown := sorted({*given} - {"prompt", *self.SETTINGS}):
            raise BadInput(f"{unknown[0]!r} is no setting: there are {', '.join(self.SETTINGS)}")
        prompt = self.string(given.get("prompt", ""), "prompt")
        try:
            options = GenerateOptions(**{name: given[name] for name in self.SETTINGS if name in given})
        except UserError as error:
            raise BadInput(str(error).removeprefix("--")) from None
        if options.max_new_tokens > self.text:
            raise BadInput(f"max_new_tokens must be {self.text:,} or less, got {options.max_new_tokens:,}")
        found = pieces(self.model, self.tokenizer, self.context, prompt, options, options.seed)
        return Writing(prompt, found)

    def answer(self, items: Sequence[Writing]) -> list[Any]:
        """The next piece of each text, None where it has ended; an error in the place of a piece is of this text alone."""
        found: list[Any] = []
        with self.precise:
            for one in items:
                try:
                    found.append(next(one.pieces))
                except StopIteration as stop:
                    one.tokens, one.ended = stop.value or (one.tokens, one.ended)
                    found.append(None)
                except Exception as error:
                    found.append(error)
        return found


PROGRAMS: dict[str, type[Served]] = {
    "tasks.image_classification": Pictures,
    "tasks.text_classification": Texts,
    "tasks.token_classification": Tokens,
    "tasks.question_answering": Questions,
    "tasks.translation": Translations,
    "tasks.text_generation": Generations,
}


def load(path: str, **options: Any) -> Served:
    """The model of a run's folder. Errors: `UserError` and `ValueError` for what is none, or of no task that is served."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path} is not there: the folder of a run is expected, such as runs/NAME")
    folder = folder.resolve()
    program = program_of(folder)
    if program not in PROGRAMS:
        of = f"a run of {program}" if program else "no run"
        raise UserError(f"{path} is {of}: runs of {', '.join(name.removeprefix('tasks.') for name in PROGRAMS)} are served")
    return PROGRAMS[program](folder=folder, **options)
