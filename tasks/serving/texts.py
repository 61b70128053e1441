"""Texts that are labelled, searched and translated, as a server reads and answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tasks.serving import schemas
from tasks.serving.models import BadInput, Served, shown
from tasks.serving.schemas import Schema


class Texts(Served):
    task = "text-classification"
    quick = sized = True

    def load(self) -> None:
        from tasks.text_classification_use import UseOptions

        self.reader, self.classes, self.precise = self.options(UseOptions).load()
        self.pairs = self.reader.model.config["texts"] == 2
        if self.pairs:
            self.takes, self.example = "two strings in a list", ["a text", "another text"]  # type: ignore
            self.tensors = "text", "text_pair"  # type: ignore

    def about(self) -> dict[str, Any]:
        return {"classes": self.classes, "texts": 2 if self.pairs else 1}

    def schemas(self) -> tuple[Schema, Schema]:
        one = schemas.text(self.text)
        told = {"label": schemas.one_of(*self.classes), "scores": schemas.by_class(self.classes)}
        return schemas.listed(one, 2, 2) if self.pairs else one, schemas.made_of(told)

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

    def size(self, item: Any) -> int:
        return 1 + sum(map(len, item))


class Tokens(Served):
    task = "token-classification"

    def load(self) -> None:
        from tasks.token_classification_use import PredictOptions

        self.reader, self.precise = self.options(PredictOptions).load()

    def about(self) -> dict[str, Any]:
        return {"labels": sorted({tag[2:] for tag in self.reader.model.config["tags"] if tag[:2] in ("B-", "I-")})}

    def schemas(self) -> tuple[Schema, Schema]:
        place = schemas.integer(minimum=0)
        span = {"label": schemas.text(), "start": place, "end": place, "text": schemas.text(), "score": schemas.number()}
        return schemas.text(self.text), schemas.made_of({"spans": schemas.listed(schemas.made_of(span))})

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
    quick = True
    takes = 'an object with "question" and "context", strings'
    example = {"question": "Who is it?", "context": "It is the cat."}
    tensors = ("question", "context")

    def load(self) -> None:
        from tasks.question_answering_use import PredictOptions

        self.how = self.options(PredictOptions)
        self.reader, self.precise = self.how.load()

    def schemas(self) -> tuple[Schema, Schema]:
        some = schemas.text(self.text, pattern=r"\S")
        place = schemas.either(schemas.integer(minimum=0), {"type": "null"})
        one = {"answer": schemas.text(), "score": schemas.number(), "start": place, "end": place}
        found = schemas.made_of(one | {"nbest": schemas.listed(schemas.made_of(one))})
        return schemas.made_of({"question": some, "context": some}), found

    def read(self, value: Any) -> Any:
        from tasks.data.questions import Question

        if not isinstance(value, dict) or {*value} != {"question", "context"}:
            raise BadInput(f"an input must be {self.takes}, got {shown(value)}")
        question, context = (self.string(value[name], name) for name in ("question", "context"))
        if not question.strip() or not context.strip():
            raise BadInput("question and context must have some text")
        return Question("", question, context)

    def from_tensors(self, *strings: str) -> Any:
        return dict(zip(self.tensors, strings, strict=True))

    def answer(self, items: Sequence[Any]) -> list[Any]:
        from tasks.answering import answer, row

        with self.precise:
            found = answer(self.reader, items, n_best=self.how.n_best, max_answer=self.how.max_answer, batch_size=self.batch)
        rows = [row(*pair, self.reader.model.config["threshold"]) for pair in zip(items, found, strict=True)]
        return [{key: one[key] for key in ("answer", "score", "start", "end", "nbest")} for one in rows]


class Line(NamedTuple):
    """sentence: as the model reads it. longest: tokens of its translation, at most. explained: whether attention is asked for."""

    sentence: str
    longest: int
    explained: bool = False


class Translations(Served):
    task = "translation"
    explains = True

    def load(self) -> None:
        from tasks.generation_config import generation_of
        from tasks.translation_options import TranslateOptions
        from tasks.translation_use import load_run, trained_on

        self.how = self.options(TranslateOptions, batch_size=self.batch)
        self.model, self.tokenizer, folder, self.precise = load_run(self.how)
        self.trained = trained_on(folder)
        self.generation = generation_of(self.model.config.get("huggingface"), self.tokenizer)
        self.how.beam = self.generation.beams

    def about(self) -> dict[str, Any]:
        return {"source": self.trained.source, "target": self.trained.target}

    def schemas(self) -> tuple[Schema, Schema]:
        why = "one line; a line of too many tokens is refused too"
        return schemas.text(self.text, pattern=r"^[^\n]*$", description=why), schemas.made_of({"translation": schemas.text()})

    def explained_schema(self) -> Schema:
        pieces, told = schemas.listed(schemas.text()), self.schemas()[1]["properties"]
        grid = schemas.listed(schemas.listed(schemas.number(minimum=0)), description="rows: pieces of the target")
        return schemas.made_of({**told, "source": pieces, "target": pieces, "attention": grid})

    def read(self, value: Any) -> Line:
        from tasks.translation_use import readable

        if "\n" in self.string(value):
            raise BadInput("an input must be one line: give lines as inputs of their own")
        (sentence,), longest = readable([value], "an input", None, self.tokenizer, self.trained, self.generation)
        return Line(sentence, longest)

    def answer(self, items: Sequence[Line]) -> list[Any]:
        from tasks.translation_use import translated

        sentences = [one.sentence for one in items]
        with self.precise:
            found = translated(self.model, self.tokenizer, sentences, self.how, self.generation, longest=items[0].longest)
            rows = [{"translation": best.text} for best, *_ in found]
            for one, row in zip(items, rows, strict=True):
                row |= self.attention(one.sentence, row["translation"]) if one.explained else {}
        return rows

    def attention(self, sentence: str, translation: str) -> dict[str, Any]:
        from tasks.translating import attention_between

        if not sentence:
            return {"source": [], "target": [], "attention": []}
        weights, source, target = attention_between(self.model, self.tokenizer, sentence, translation)
        return {"source": source, "target": target, "attention": [[round(x, 6) for x in row] for row in weights.tolist()]}
