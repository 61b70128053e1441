"""Use a model that `tasks.token_classification` has trained: find spans in texts, and measure how well it finds them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.commands import checking_input
from tasks.options import UserError, option
from tasks.span_models import UseOptions, chunks, own_test
from tasks.tables import FILES, require_table, writing

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.data.tagged import Tagged
    from tasks.token_labelling import Labelled

PROGRAM = "tasks.token_classification"
TAGGED = "files of a word and its tag a line, as CoNLL's, or .xml of labelled words"


@dataclass
class PredictOptions(UseOptions):
    title, program = "texts", PROGRAM
    input: str = option("-", 'a text a line, or .jsonl with "text", or "words", a line; - is standard input', path=True)
    text: list[str] = option((), "texts, in place of --input", many=True)
    output: str = option("-", f"text and spans of each: a {FILES}", path=True)


@dataclass
class EvaluateOptions(UseOptions):
    title, program = "texts", PROGRAM
    test: list[str] = option((), f"{TAGGED} (default: the test texts of the run)", many=True, path=True)
    scheme: str = option("auto", "of the tags in --test", ("auto", "iob2", "iob1", "iobes", "io"))
    output: str = option("", f"spans of each text, true ones and found ones: a {FILES}", path=True)


@checking_input()
def predict(given: dict[str, Any]) -> None:
    from tasks.token_labelling import label

    options = PredictOptions(**given)
    require_table("--output", options.output)
    reader, precision = options.load()
    with precision, writing(options.output) as put:
        for texts in read(options):
            found = label(reader, texts, options.batch_size)
            put(row(*pair) for pair in zip(texts, found, strict=True))


def read(options: PredictOptions) -> Iterator[list[Tagged]]:
    """Texts to label, some at a time. Errors: `UserError` that names file and line."""
    from tasks.data.tagged import Tagged, words_of

    if options.text:
        yield [Tagged(text, words_of(text), ()) for text in options.text]
        return

    def parse(number: int, line: str) -> Tagged | None:
        if not options.input.removesuffix(".gz").endswith(".jsonl"):
            return Tagged(line, words_of(line), ())
        return of_json(line, f"{options.input}, line {number}") if line.strip() else None

    yield from chunks(options.input, parse)


def of_json(line: str, place: str) -> Tagged:
    from tasks.data.tagged import Tagged, joined, words_of

    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    given = [found[key] for key in ("text", "words") if key in found] if isinstance(found, dict) else []
    if len(given) == 1 and isinstance(given[0], str):
        return Tagged(given[0], words_of(given[0]), ())
    if len(given) == 1 and isinstance(given[0], list) and all(isinstance(word, str) and word for word in given[0]):
        return joined(given[0], ())
    raise UserError(f'{place}: expected an object with "text", a string, or "words", a list of strings, got {line[:60]!r}')


def row(text: Tagged, found: Labelled) -> dict[str, Any]:
    """Spans with offsets in characters."""
    spans = []
    for span, score in zip(found.spans, found.scores, strict=True):
        start, end = text.characters(span)
        spans.append({"label": span.type, "start": start, "end": end, "text": text.text[start:end], "score": round(score, 6)})
    return {"text": text.text, "spans": spans}


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    from tasks.data.tagged import read as read_tagged
    from tasks.span_scores import table
    from tasks.token_classification import TrainOptions, identity, load
    from tasks.token_labelling import label

    options = EvaluateOptions(**given)
    require_table("--output", options.output)
    reader, precision = options.load()
    test = read_tagged(options.test, options.scheme) if options.test else own_test(options, TrainOptions, load, identity)
    with precision, writing(options.output) as put:
        found = label(reader, test, options.batch_size)
        put(beside(*pair) for pair in zip(test, found, strict=True))
    by_type, exact = measured(test, [one.spans for one in found])
    print(*table(by_type), sep="\n")
    print(told(by_type, exact, len(test)))


def beside(text: Tagged, found: Labelled) -> dict[str, Any]:
    true = [{"label": span.type, **dict(zip(("start", "end"), text.characters(span), strict=True))} for span in text.spans]
    return {**row(text, found), "true": true}


def measured(texts: Sequence[Tagged], found: Sequence[Any]) -> tuple[Any, float]:
    """Counts by type, and the part of the texts all of whose spans are right and that have no other."""
    from tasks.span_scores import count

    exact = sum({*text.spans} == {*spans} for text, spans in zip(texts, found, strict=True)) / len(texts)
    return count([text.spans for text in texts], found), exact


def told(by_type: Any, exact: float, texts: int) -> str:
    from tasks.span_scores import macro_f1, total

    whole = total(by_type)
    return (
        f"span F1 {whole.f1:.4f} (precision {whole.precision:.4f}, recall {whole.recall:.4f}; macro F1 {macro_f1(by_type):.4f}), "
        f"whole texts {exact:.4f}: {whole.true:,} spans in {texts:,} texts"
    )
