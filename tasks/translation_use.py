"""Use a trained translator: translate lines, measure it on a test set, give it to others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import tables
from tasks.commands import checking_input
from tasks.generation_config import Generation, generation_of
from tasks.options import UserError, data_of, restored
from tasks.saved import RunOptions, find_run
from tasks.translation_options import CorpusOptions, DecodingOptions, EvaluateOptions, ExportOptions, TranslateOptions

LONGEST = 256
"""Tokens of a sentence, and of its translation, where nobody says."""

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.data.parallel import Held
    from tasks.data.tokenizer import TextTokenizer
    from tasks.translating import Hypothesis


@checking_input()
def translate_lines(given: dict[str, Any]) -> None:
    """Lines in, lines out: nothing is written before all of them are translated."""
    from tasks import translating

    options = TranslateOptions(**given)
    check_translate(options)
    model, tokenizer, folder, precision = load_run(options)
    trained, lines = trained_on(folder), read_input(options.input)
    where = "standard input" if options.input == "-" else options.input
    form = options.format or tables.format_of(options.output, "lines")
    generation = generation_of(model.config.get("huggingface"), tokenizer)
    require_beams(options, options.beam or generation.beams)
    sentences, longest = readable(lines, f"--max_length: {where}", options.max_length, tokenizer, trained, generation)
    with precision:
        scored = options.scores or form != "lines"
        more = {"longest": longest, "nbest": options.nbest, "scored": scored}
        found = translated(model, tokenizer, sentences, options, generation, **more)
        if options.attention and sentences:
            translating.draw_attention(model, tokenizer, sentences[0], found[0][0].text, Path(options.attention))
    with tables.writing(options.output, form) as write:
        write(translating.as_lines(found, options.scores) if form == "lines" else translating.as_rows(lines, found))


def readable(
    lines: Sequence[str], where: str, most: int | None, tokenizer: TextTokenizer, trained: CorpusOptions, generation: Generation
) -> tuple[list[str], int]:
    """Lines as the model reads them, and the most tokens of a translation. Errors: `UserError` for a line of too many tokens."""
    from tasks.data.text import clean

    sentences = [spell(clean(line, trained.normalize), trained.data) for line in lines]
    longest = most or generation.longest or LONGEST
    room = most or max(longest, LONGEST)
    for n, ids in enumerate(tokenizer.encode_batch(sentences), start=1):
        if len(ids) >= room:
            said = f"{sentences[n - 1][:40]!r}, has {len(ids)} tokens, at most {room - 1} are allowed"
            raise UserError(f"{where}, line {n}, {said}")
    return sentences, longest


def check_translate(options: TranslateOptions) -> None:
    """Errors: `UserError` for what cannot be read or written, or asks for too much, before anything is loaded."""
    require_beams(options, options.beam or options.nbest)
    if options.input != "-" and (not Path(options.input).exists() or Path(options.input).is_dir()):
        raise UserError(f"--input {options.input} is {'a folder' if Path(options.input).is_dir() else 'not there'}")
    tables.require_table("--output", options.output, lines=True)
    tables.require_writable("--attention", options.attention, [".png"])


def require_beams(options: TranslateOptions, beams: int) -> None:
    """Errors: `UserError` for more translations than hypotheses."""
    if options.nbest > beams:
        raise UserError(f"--nbest {options.nbest} needs --beam {options.nbest} or more, got {beams}")


def read_input(path: str) -> list[str]:
    """All lines, of UTF-8 whatever the locale. Errors: `DataError` that names the line."""
    from tasks.data.text_files import decoded, lines

    return list(decoded(sys.stdin.buffer, "standard input") if path == "-" else lines(Path(path)))


def spell(line: str, data: str) -> str:
    """A word letter by letter for a model of pronunciations."""
    return " ".join(line.lower()) if data == "cmudict" else line


def options_of(folder: Path) -> dict[str, Any]:
    """The options that a run has kept."""
    from zoo import files

    return files.read_json(folder / "options.json") if (folder / "options.json").exists() else {}


def trained_on(folder: Path) -> CorpusOptions:
    """What a run was trained on. Errors: `UserError` for an option that cannot have been one."""
    return restored(CorpusOptions, {"normalize": "none"} | options_of(folder), folder)  # runs from before there were forms


def load_run(options: DecodingOptions) -> tuple[Any, TextTokenizer, Path, AbstractContextManager[Any]]:
    """As `load_translator`, the model on --device, and the context that computes in --precision."""
    from tasks.saved import placed

    model, tokenizer, folder = load_translator(options)
    model, precision = placed(model, options)
    return model, tokenizer, folder, precision


def load_translator(options: RunOptions) -> tuple[Any, TextTokenizer, Path]:
    """Model, tokenizer and folder of a run. Errors: `UserError` where there is none; `DataError` if the two do not match."""
    import zoo
    from tasks.data.tokenizer import load_tokenizer

    folder = find_run(options, "tokenizer.json")
    model: Any = zoo.load(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json").starting(model.config.get("start")).require("pad", "bos", "eos")
    if not hasattr(model, "embedding"):
        raise UserError(f"{folder} holds a {model.config['model']}, no translator")
    tokenizer.require_vocab_size(model.embedding.table.num_embeddings)
    if model.config.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise UserError(f"{folder / 'tokenizer.json'} is not the tokenizer that the model was trained with")
    return model, tokenizer, folder


def translated(
    model: Any, tokenizer: TextTokenizer, sentences: Sequence[str], options: DecodingOptions, generation: Generation, **more: Any
) -> list[list[Hypothesis]]:
    """As `translating.search`; an empty sentence stays empty, whichever hypothesis. Settings that nobody typed are told."""
    import torch

    import zoo
    from tasks.translating import Hypothesis, search

    if options.beam is None and generation.told:
        print(generation.told, file=sys.stderr)
    if options.compile:
        device = next(model.parameters()).device
        half = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        try:
            model = zoo.optimize(model, torch.zeros(2, 8, dtype=torch.long, device=device), half)
        except ValueError as error:
            raise UserError(f"--compile: {error}") from error
    full = [n for n, sentence in enumerate(sentences) if sentence]
    decoding = {"beam": options.beam, "length_penalty": options.length_penalty, "batch_size": options.batch_size}
    found = search(model, tokenizer, [sentences[n] for n in full], generation=generation, **decoding, **more)
    by_line = dict(zip(full, found, strict=True))
    return [by_line.get(n, [Hypothesis("")] * more.get("nbest", 1)) for n in range(len(sentences))]


@checking_input()
def evaluate(given: dict[str, Any]) -> None:
    from tasks.scores import corpus_scores, sentence_scores

    options = EvaluateOptions(**given)
    tables.require_table("--output", options.output)
    if options.columns and not options.test:
        raise UserError("--columns is about --test: give that too")
    model, tokenizer, folder, precision = load_run(options)
    trained = trained_on(folder)
    how = {"data": trained.data, "language": trained.target, "tokenize": options.bleu_tokenize or ""}
    corpus_scores(["a"], [["a"]], **how)  # what cannot be measured is known before it is translated
    held, notes = test_set(options, trained, tokenizer)
    for note in notes.values():
        print(note, file=sys.stderr)
    then = data_of(options_of(folder)) or {}
    known = (then.get("test") or then.get("valid") or {}).get("fingerprint")
    if not options.test and known not in (None, held.fingerprint):
        print("the test set is not what it was in training: its pairs have changed", file=sys.stderr)
    generation = generation_of(model.config.get("huggingface"), tokenizer)
    longest = options.max_length or generation.longest or trained.max_length
    with precision:
        found = [best.text for best, *_ in translated(model, tokenizer, held.sources, options, generation, longest=longest)]
    measured, signature = corpus_scores(found, held.references, **how)
    with tables.writing(options.output, widths={"references": max(map(len, held.references))}) as write:
        if options.output:
            each = sentence_scores(found, held.references, **how)
            write(
                {"source": source, "references": references, "translation": translation, **scores}
                for source, references, translation, scores in zip(held.sources, held.references, found, each, strict=True)
            )
        for name, value in measured.items():
            print(f"{name} {value:.4f}")
        if held.counts.kept:
            print(f"test: {held.counts}")
        print(f"{len(found):,} sentences" + (f", BLEU signature {signature}" if signature else ""))


def test_set(options: EvaluateOptions, trained: CorpusOptions, tokenizer: TextTokenizer) -> tuple[Held, dict[str, str]]:
    """The pairs of --test, cleaned as in training, or the run's own test set; and what is to be told of them."""
    from tasks.data.parallel import Held, fitting, load_test
    from tasks.data.text import read

    notes: dict[str, str] = {}
    if not options.test:
        return load_test(trained, tokenizer, notes), notes
    pairs = read(options.test, trained.source, trained.target, options.columns or trained.columns, notes)
    pairs = ((spell(source.strip(), trained.data), target) for source, target in pairs)
    fits = fitting(tokenizer, options.max_length or trained.max_length)
    held = Held.of(pairs, fits, trained.data == "cmudict", trained.normalize)
    return held.require_some("test"), notes


@checking_input()
def export(given: dict[str, Any]) -> None:
    from tasks import marian

    options = ExportOptions(**given)
    if not options.out:
        raise UserError("--out: give a folder to make")
    model, tokenizer, folder = load_translator(options)
    names = marian.write(model, tokenizer, Path(options.out))
    print(f"{options.out}: {folder.name} for transformers, {', '.join(names)}")
