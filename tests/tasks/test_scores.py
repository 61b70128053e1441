"""Measures of translations: BLEU by language, its signature, what counts, and what cannot be measured."""

from __future__ import annotations

import pytest
import sacrebleu
from command import complaint

from tasks import scores as module
from tasks.data.parallel import Held
from tasks.data.text import Counts
from tasks.scores import bleu_tokenizer, corpus_scores, scores, sentence_scores

CHINESE = ["从文件菜单中选择打开命令。", "关闭函数向导并保存文件。", "请输入列的宽度。"]
JAPANESE = ["東京都交通局の地図を保存", "開く"]
TEXTS = {
    "zh": CHINESE, "ja": JAPANESE, "ko": ["파일을 열어 주세요.", "도움말"], "th": ["เปิดไฟล์", "บันทึกแฟ้ม"], "lo": ["ເປີດໄຟລ໌"],
    "km": ["បើកឯកសារ"], "my": ["ဖိုင်ဖွင့်ပါ"],
}  # fmt: skip


@pytest.fixture(params=[True, False], ids=["mecab", "no mecab"])
def mecab(request, monkeypatch) -> bool:
    """Whether the packages for Japanese and Korean are there."""
    monkeypatch.setattr(module, "find_spec", lambda name: name if request.param else None)
    return request.param


def expected(language: str, mecab: bool) -> str:
    choice = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab", "th": "char", "lo": "char", "km": "char", "my": "char"}[language]
    return choice if mecab or "mecab" not in choice else "char"


@pytest.mark.parametrize("language", TEXTS)
def test_the_tokenizer_suits_the_language(mecab, language):
    """As it is called, in any of its codes, and where nobody says it, as it is written."""
    right = expected(language, mecab)
    longer = [code for code, short in module.TWO_LETTERS.items() if short == language]
    for name in (language, f"{language}_XX", f"{language}-Latn", language.upper(), *longer, f"{longer[0]}_Hans"):
        assert bleu_tokenizer(name) == right, name
    assert bleu_tokenizer(None, [[text] for text in TEXTS[language]]) == right
    assert bleu_tokenizer("en", [TEXTS[language]]) == "13a"  # what is said counts


def test_other_languages_are_split_at_spaces(mecab):
    for name in ("de", "en", "fr_CA", "ru", "ar", "deu"):
        assert bleu_tokenizer(name) == "13a"
    for texts in (["A dog. 打开"], ["Собака", "כלב"], [""], [], ["1234 !?"]):
        assert bleu_tokenizer(None, [texts]) == "13a"


@pytest.mark.parametrize("tokenize", ["", "none", "13a", "intl", "char", "zh"])
def test_bleu_and_its_signature_are_sacrebleus(tokenize):
    """One object computes and signs."""
    found = [text[:4] + "错" + text[5:] for text in CHINESE] * 5
    measured, signature = corpus_scores(found, [[text] for text in CHINESE] * 5, language="zh_Hans", tokenize=tokenize)
    same = sacrebleu.corpus_bleu(found, [CHINESE * 5], tokenize=tokenize or "zh")
    assert measured["bleu"] == same.score
    assert f"tok:{tokenize or 'zh'}|" in signature
    assert "nrefs:1|case:mixed|eff:no" in signature
    assert measured["chrf"] == sacrebleu.corpus_chrf(found, [CHINESE * 5]).score
    assert measured == scores(found, [[text] for text in CHINESE] * 5, "", "zh", tokenize)


def test_a_missing_mecab_is_told(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for language in ("ja", "ko"):
        message = complaint(corpus_scores, ["a"], [["a"]], tokenize=f"{language}-mecab")
        assert message.startswith(
            f'--bleu_tokenize {language}-mecab needs packages that are not installed: pip install "sacrebleu['
        )
        assert f"sacrebleu[{language}]" in message


def test_no_sentences_are_no_measure():
    for data in ("", "cmudict", "cldr"):
        assert complaint(scores, [], [], data) == "there are no sentences to measure"


def test_a_sentences_scores_are_its_own():
    found, right = ["a b c d e", "x", ""], [["a b c d e"], ["y", "x"], ["z"]]
    each = sentence_scores(found, right)
    assert [row["exact_match"] for row in each] == [1.0, 1.0, 0.0]
    assert [row["bleu"] for row in each] == pytest.approx([100, 100, 0])
    assert sum(row["exact_match"] for row in each) / 3 == scores(found, right)["exact_match"]
    errors = sentence_scores(["K AE1 T", "T"], [["K AE1 T"], ["K T"]], "cmudict")
    assert [row["phoneme_error_rate"] for row in errors] == [0, 0.5]


def test_every_pair_counts_once():
    pairs = [("Open", "Öffnen"), ("Open", "Offen"), (" Open\u3000", "Auf "), ("", "x"), ("x", " "), ("y", "z z z")]
    held = Held.of(pairs, fits=lambda pair: len(pair[1]) < 7)
    assert held.sources == ["Open"] * 3 + ["y"]
    assert held.references == [["Öffnen"], ["Offen"], ["Auf"], ["z z z"]]
    assert held.counts == Counts(kept=4, empty=2, long=0)
    together = Held.of(pairs, fits=lambda pair: len(pair[1]) < 5, together=True)
    assert (together.sources, together.references) == (["Open"], [["Auf"]])
    assert together.counts == Counts(kept=1, empty=2, long=3)
    many = Held.of(pairs, together=True)
    assert many.references == [["Öffnen", "Offen", "Auf"], ["z z z"]]
    assert many.pairs() == [("Open", "Öffnen"), ("y", "z z z")]
    assert scores(["Auf", "z z z"], many.references)["exact_match"] == 1
    assert scores(["Auf"] * 3 + [""], held.references)["exact_match"] == 0.25
    assert complaint(Held.of([("", "a")]).require_some, "test").startswith("no pairs are left to test on: 0 pairs; skipped 1")
    prints = {one.fingerprint for one in (held, many, Held.of(pairs[:2]), Held.of([("Open", "Öffnen")]), Held.of([]))}
    assert len(prints) == 5


def test_texts_are_compared_in_one_normal_form():
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert Held.of([(apart, composed)], form="nfc").pairs() == [(composed, composed)]
    assert Held.of([(apart, composed)]).pairs() == [(apart, composed)]
    assert Held.of([("\ufb01", "\u2460")], form="nfkc").pairs() == [("fi", "1")]
