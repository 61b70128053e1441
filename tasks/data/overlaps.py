"""Windows over texts that are longer than a model's context: each token is read in several, and counts in the best of them."""

from __future__ import annotations

from collections.abc import Sequence

from layers.checks import require


def windows(length: int, width: int, overlap: int) -> list[tuple[int, int]]:
    """(start, end) of windows of at most `width` tokens that cover all `length` ones; neighbours share `overlap` at least.

    The last one is as wide as the others, and shares more.
    """
    require(width > 0, "width", width, "positive")
    require(0 <= overlap < width, "overlap", overlap, f"from 0 to the width less one, {width - 1}")
    starts = [*range(0, max(length - width, 0), width - overlap), max(length - width, 0)]
    return [(start, min(start + width, length)) for start in starts]


def owners(length: int, windows: Sequence[tuple[int, int]]) -> list[int]:
    """For each token the window that has the most context on the side where it has less, the first of these."""
    best = [(-1, -1)] * length
    for n, (start, end) in enumerate(windows):
        for token in range(start, end):
            best[token] = max(best[token], (min(token - start, end - 1 - token), n), key=lambda pair: pair[0])
    return [n for _, n in best]
