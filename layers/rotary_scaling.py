"""Frequencies of rotary positions for texts longer than those that a model was trained on; for `Rotary(scaling=...)`.

    LinearScaling    all frequencies divided by one factor          Chen et al., 2023 (arXiv 2306.15595)
    DynamicScaling   a larger base, the longer the text             "NTK-aware", bloc97 and emozilla, 2023
    YarnScaling      low frequencies divided, high ones kept        Peng et al., 2023 (arXiv 2309.00071)
    Llama3Scaling    the same with another ramp between             Grattafiori et al., 2024 (arXiv 2407.21783)
    LongRopeScaling  a searched factor for each frequency           Ding et al., 2024 (arXiv 2402.13753)

A scaling takes frequencies (f,) in radians per position, the `base` that they come from, and the `length` of the text in tokens,
and returns frequencies (f,). `attention_factor` multiplies sines and cosines, so that its square multiplies the scores. Those
that `need_length` depend on the length of the whole text: within one text it must stay the same, or keys in a cache would have
been turned by other angles than those that come. Proven against transformers' rope types linear, dynamic, yarn, llama3, longrope.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log, pi, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from layers.checks import require


@dataclass(frozen=True)
class Scaling:
    """Abstract."""

    needs_length: ClassVar[bool] = False

    @property
    def attention_factor(self) -> float:
        return 1.0

    def __call__(self, frequencies: Tensor, base: float, length: Tensor | int) -> Tensor:
        raise TypeError("a Scaling must be one of its kinds, such as Llama3Scaling")


@dataclass(frozen=True)
class LinearScaling(Scaling):
    """``f -> f / factor``: positions are interpolated."""

    factor: float

    def __post_init__(self) -> None:
        require_factor(self.factor)

    def __call__(self, frequencies: Tensor, base: float, length: Tensor | int) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class DynamicScaling(Scaling):
    """``f_i -> f_i r^(-2i / (dim - 2))``, ``r = factor * length / original_length - (factor - 1)``, and 1 for shorter texts.

    That is a base of ``base * r^(dim / (dim - 2))``: the highest frequency stays, the lowest is divided by r.
    """

    factor: float
    original_length: int
    needs_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_factor(self.factor)
        require_length(self.original_length)

    def __call__(self, frequencies: Tensor, base: float, length: Tensor | int) -> Tensor:
        longer = torch.as_tensor(length, dtype=torch.float64, device=frequencies.device).clamp(min=self.original_length)
        ratio = self.factor * longer / self.original_length - (self.factor - 1)
        steps = torch.arange(len(frequencies), dtype=torch.float64, device=frequencies.device)
        return frequencies * ratio ** (-steps / max(len(frequencies) - 1, 1))


@dataclass(frozen=True)
class Llama3Scaling(Scaling):
    """``f -> f * (s + (1 - s) / factor)``, ``s = (original_length * f / 2 pi - low) / (high - low)`` but from 0 to 1.

    A feature that turns more than `high` times within the original length keeps its frequency f, one that turns less than `low`
    times is slowed down by `factor`, those between are interpolated. Llama 3.1 has factor 8, Llama 3.2 has 32.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        require_factor(self.factor)
        require(0 < self.low < self.high, "low", self.low, f"positive and less than high = {self.high}")
        require_length(self.original_length)

    def __call__(self, frequencies: Tensor, base: float, length: Tensor | int) -> Tensor:
        turns = self.original_length * frequencies / (2 * pi)
        return mixed(frequencies, self.factor, ((turns - self.low) / (self.high - self.low)).clamp(0, 1))


@dataclass(frozen=True)
class YarnScaling(Scaling):
    """``f_i -> f_i * (s + (1 - s) / factor)``, where s falls from 1 to 0 between two places in the row of frequencies.

    These are where a feature turns `fast` and `slow` times within the original length; whole numbers, unless `truncate` is False.
    attention: the factor of sines and cosines, ``0.1 ln(factor) + 1`` unless given.
    """

    factor: float
    original_length: int
    attention: float | None = None
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        require_factor(self.factor)
        require_length(self.original_length)
        require(0 < self.slow < self.fast, "slow", self.slow, f"positive and less than fast = {self.fast}")

    @property
    def attention_factor(self) -> float:
        return 0.1 * log(self.factor) + 1 if self.attention is None else self.attention

    def __call__(self, frequencies: Tensor, base: float, length: Tensor | int) -> Tensor:
        count = len(frequencies)
        first, last = (count * log(self.original_length / (turns * 2 * pi)) / log(base) for turns in (self.fast, self.slow))
        first, last = (floor(first), ceil(last)) if self.truncate else (first, last)
        first, last = max(first, 0), min(last, 2 * count - 1)  # not count - 1, in the paper's code too
        steps = torch.arange(count, dtype=torch.float64, device=frequencies.device)
        slowed = ((steps - first) / (last - first if last != first else 0.001)).clamp(0, 1)
        return mixed(frequencies, self.factor, 1 - slowed)


@dataclass(frozen=True)
class LongRopeScaling(Scaling):
    """``f_i -> f_i / short_i`` for texts of up to `original_length` tokens, ``f_i / long_i`` for longer ones.

    short, long: a factor for each frequency.
    factor:      by how much texts may be longer than the original ones.
    attention:   the factor of sines and cosines, ``sqrt(1 + ln(factor) / ln(original_length))`` unless given.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    factor: float
    attention: float | None = None
    needs_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "short", tuple(self.short))
        object.__setattr__(self, "long", tuple(self.long))
        require(len(self.short) == len(self.long), "long", f"{len(self.long)} factors", f"as many as short, {len(self.short)}")
        require(all(x > 0 for x in self.short + self.long), "short and long", (self.short, self.long), "positive")
        require_factor(self.factor)
        require(self.original_length > 1, "original_length", self.original_length, "more than 1")

    @property
    def attention_factor(self) -> float:
        return sqrt(1 + log(self.factor) / log(self.original_length)) if self.attention is None else self.attention

    def __call__(self, frequencies: Tensor, base: float, length: Tensor | int) -> Tensor:
        n = len(frequencies)
        require(len(self.short) == n, "short", f"{len(self.short)} factors", f"{n}, one for each frequency")
        short, long = (frequencies.new_tensor(factors) for factors in (self.short, self.long))
        longer = torch.as_tensor(length, device=frequencies.device) > self.original_length
        return frequencies / torch.where(longer, long, short)


def mixed(frequencies: Tensor, factor: float, kept: Tensor) -> Tensor:
    """Frequencies of which the share `kept`, from 0 to 1, stays, and the rest is divided by the factor."""
    return frequencies * (kept + (1 - kept) / factor)


def require_factor(factor: float) -> None:
    require(factor >= 1, "factor", factor, "1 or more")


def require_length(original_length: int) -> None:
    require(original_length > 0, "original_length", original_length, "positive")


SCALINGS: dict[str, type[Scaling]] = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "longrope": LongRopeScaling,
}
"""By the names of transformers' rope types."""
