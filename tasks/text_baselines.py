"""What needs no network: naive Bayes, and a linear support vector machine, on words and on pieces of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.data.labelled import Labelled

MOST = 20_000
"""Training texts; of more the pieces would take long, and gigabytes."""


def baselines(train: Sequence[Labelled], test: Sequence[Labelled]) -> dict[str, float]:
    """Accuracy of each on the test texts; none where there are too many texts, or no words in them."""
    if len(train) > MOST:
        return {}
    texts, others = ([" | ".join(e.texts) for e in split] for split in (train, test))
    labels = [e.label for e in train]
    found = {}
    for name, machine in machines().items():
        try:
            said = machine.fit(texts, labels).predict(others)
        except ValueError:  # no words
            continue
        found[name] = sum(a == e.label for a, e in zip(said, test, strict=True)) / len(test)
    return found


def machines() -> dict[str, Any]:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    pieces = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5))
    return {
        "naive Bayes on words": make_pipeline(CountVectorizer(), MultinomialNB(alpha=0.1)),
        "linear SVM on words": make_pipeline(TfidfVectorizer(sublinear_tf=True), LinearSVC(dual=True, random_state=0)),
        "linear SVM on words and pieces": make_pipeline(make_union(words, pieces), LinearSVC(dual=True, random_state=0)),
    }
