"""What a text classifier must beat: naive Bayes on words, and a linear machine on words and parts of words."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.data.labelled import Labelled

MOST = 50_000
"""Texts to train on, above which the machine takes minutes."""


def baselines(train: Sequence[Labelled], test: Sequence[Labelled]) -> dict[str, float]:
    """Accuracy on the test texts by name, nothing for more than `MOST` texts.

    naive Bayes     multinomial, of counts of words
    linear machine  support vectors, of tf-idf of words and pairs of them, and of two to five characters within words
    commonest class is always said
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    if len(train) > MOST:
        return {}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    machines = {
        "naive Bayes": make_pipeline(CountVectorizer(), MultinomialNB()),
        "linear machine": make_pipeline(make_union(words, characters), LinearSVC()),
    }
    texts, labels = zip(*(("\n".join(example.texts), example.label) for example in train), strict=True)
    asked, true = zip(*(("\n".join(example.texts), example.label) for example in test), strict=True)
    common = max(sorted({*labels}), key=labels.count)
    found = {"commonest class": true.count(common) / len(true)}
    for name, machine in machines.items():
        try:
            found[name] = float(machine.fit(texts, labels).score(asked, true))
        except ValueError:  # no word in any text
            continue
    return found
