"""The options of `tasks.translation`, those of its data apart from those of using a translator."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.options import Options, option
from tasks.saved import RunOptions, SavedOptions
from tasks.tables import FILES as TABLES
from tasks.tables import FORMATS

PROGRAM = "tasks.translation"
TOKENIZE = ("none", "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab")
FORMS = ("nfc", "nfkc", "none")
OF_ITS_FOLDER = "after --init hf:PATH what that folder says"
FILES = "two files of lines, or one .tsv, .csv, .jsonl, .tmx, .po or .mo file"


@dataclass
class ParallelDataOptions(Options):
    title = "data"
    data: str = option("cldr", "cldr (dates, amounts, names as Unicode writes them), cmudict (spelling to phonemes), or hf:NAME")
    source: str | None = option(None, "language to translate from (default: what two files' endings tell; for cldr de)")
    target: str | None = option(None, "language to translate into (default: what two files' endings tell; for cldr en)")
    train: list[str] = option((), f"{FILES}, in place of --data", many=True, path=True)
    valid: list[str] = option((), "the same, to validate on: the best model is chosen by it", many=True, path=True)
    test: list[str] = option((), "the same, to test on, once at the end (default: --valid)", many=True, path=True)
    dataset_path: str = option("", "folder with train, valid and test files, in place of --data", path=True)
    columns: str = option("", "columns of source and target in .tsv, .csv and .jsonl: by number, 2,4, or by name, German,English")
    normalize: str = option(None, "Unicode normal form of all text (default: nfc; of a prepared folder its own)", FORMS)
    max_examples: int | None = option(None, "train on so many pairs, drawn from all of the corpus, the same every time", least=1)
    pairs: int = option(50_000, "different training pairs of cldr", least=1)
    tokenizer: str = option("", "tokenizer.json, or folder with Marian's, to use (default: one is trained)", path=True)
    level: str | None = option(None, "what a trained tokenizer's tokens are", ("bpe", "unigram", "word", "char"))
    vocab_size: int | None = option(
        None, "tokens of a trained tokenizer, at most (default: 8000, for cldr 1000)", least=1, most=10_000_000
    )
    max_length: int = option(256, "tokens in a sentence; pairs with longer ones are skipped and counted", least=1)
    seed: int = option(0, "of the data, initial weights, order and dropout", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        source, target = self.told()
        self.source, self.target = self.source or source, self.target or target

    def told(self) -> tuple[str | None, str | None]:
        """The languages that the data itself tells, None where it tells none."""
        if self.train:
            from tasks.data.text import languages_of

            return languages_of(self.train)
        if self.dataset_path or getattr(self, "prepared", ""):
            return None, None
        if self.data.startswith("hf:"):
            from tasks.data.text_packages import hub_languages

            return hub_languages(self.data[3:])
        return ("de", "en") if self.data == "cldr" else (None, None)


@dataclass
class CorpusOptions(ParallelDataOptions):
    prepared: str = option("", "folder that `prepare` has left, in place of --data", path=True)


@dataclass
class PrepareOptions(ParallelDataOptions):
    out: str = option("prepared", "folder to make", path=True)


@dataclass
class DecodingOptions(SavedOptions):
    title, program = "decoding", PROGRAM
    beam: int = option(None, f"hypotheses that are followed; 1 is greedy (default: 1, {OF_ITS_FOLDER})", least=1, most=1000)
    length_penalty: float = option(None, f"above 0 favours long translations (default: 1.0, {OF_ITS_FOLDER})")
    batch_size: int = option(64, "sentences at a time", least=1)
    compile: bool = option(False, "make the model faster first, which takes a minute or two: for thousands of sentences")


@dataclass
class TranslateOptions(DecodingOptions):
    title = "lines"
    input: str = option("-", "file of lines; - is standard input", path=True)
    output: str = option("-", "file to write; - is standard output", path=True)
    max_length: int = option(
        None,
        "most tokens of a sentence, and of its translation, which ends at about three times its source's too "
        f"(default: 256, {OF_ITS_FOLDER})",
        least=1,
    )
    nbest: int = option(1, "so many translations of each line, the best first; --beam must be as many at least", least=1)
    scores: bool = option(
        False, "before each translation its score, by which beam search ranks, and its log-probability, with tabs between"
    )
    format: str | None = option(None, "how to write them (default: as --output ends, else lines)", ("lines", *FORMATS))
    attention: str = option("", "PNG to draw the cross-attention of the first sentence to", path=True)


@dataclass
class EvaluateOptions(DecodingOptions):
    title = "the test set"
    test: list[str] = option((), "files to test on (default: the test set of the run)", many=True, path=True)
    columns: str = option("", "of source and target in --test (default: those of the run)")
    max_length: int | None = option(
        None, f"most tokens of a sentence, and of its translation (default: as in training, {OF_ITS_FOLDER})", least=1
    )
    output: str = option("", f"write source, references, translation and scores of every sentence into this {TABLES}", path=True)
    bleu_tokenize: str | None = option(None, "sacrebleu's tokenizer (default: what suits the target language)", TOKENIZE)


@dataclass
class ExportOptions(RunOptions):
    title, program = "export", PROGRAM
    out: str = option("", "folder to make, for MarianMTModel and MarianTokenizer of transformers", path=True)
