"""The angles that positions are turned by, in Python's own floats, as twins of blocks."""

from __future__ import annotations


def angle(position, i, dim, base=10000.0):
    """Of the i-th pair of features, in Python's own floats."""
    return position / base ** (2 * i / dim)
