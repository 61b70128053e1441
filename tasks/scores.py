"""How good translations are: exact match, BLEU, chrF, and error rates of pronunciations."""

from __future__ import annotations

from collections.abc import Sequence


def scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]], data: str = "") -> dict[str, float]:
    """Exact match (with any reference, 0 to 1), BLEU and chrF of sacrebleu (0 to 100); of cmudict error rates instead."""
    from tasks.data.text import optional

    exact = sum(h in r for h, r in zip(hypotheses, references, strict=True)) / max(1, len(hypotheses))
    if data == "cmudict":
        rate = phoneme_error_rate(hypotheses, references)
        return {"exact_match": exact, "phoneme_error_rate": rate, "word_error_rate": 1 - exact}
    sacrebleu = optional("sacrebleu")
    most = max(map(len, references), default=1)
    columns = [[r[n] if n < len(r) else None for r in references] for n in range(most)]
    return {
        "exact_match": exact,
        "bleu": sacrebleu.corpus_bleu(list(hypotheses), columns).score,
        "chrf": sacrebleu.corpus_chrf(list(hypotheses), columns).score,
    }


def phoneme_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Phonemes to insert, delete or replace, over all expected ones; each word is compared with the nearest pronunciation."""
    from tasks.data.text import optional

    distance = optional("rapidfuzz.distance").Levenshtein.distance
    errors = expected = 0
    for hypothesis, variants in zip(hypotheses, references, strict=True):
        found, rights = hypothesis.split(), [variant.split() for variant in variants]
        right = min(rights, key=lambda right: distance(found, right))
        errors, expected = errors + distance(found, right), expected + len(right)
    return errors / max(1, expected)
