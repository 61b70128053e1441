"""What happens to logits before a token is drawn: temperature, filters, repetition penalty; and seeds for each row.

A filter takes weights (b, vocab_size), not negative and of any sum, and returns them with 0 for the tokens that it drops.
`Sampler` has the order of Hugging Face's `generate`: temperature, top-k, top-p, min-p, typical, each on what the one before it
left; top-n-sigma, which `generate` lacks, comes before all of them, for it looks at logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.checks import require, require_axes

MODULUS = 2**64
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""SplitMix64's increment and multipliers: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014."""


def keep_top_k(weights: Tensor, k: int) -> Tensor:
    """The k largest, exactly k of them where several are equal. Fan, Lewis and Dauphin, 2018 (arXiv 1805.04833)."""
    top, tokens = weights.topk(min(k, weights.shape[-1]))
    return torch.zeros_like(weights).scatter(-1, tokens, top)


def keep_top_p(weights: Tensor, p: float) -> Tensor:
    """The fewest tokens whose share of the sum reaches p: the one that crosses p stays. Holtzman et al., 2019 (arXiv 1904.09751).

    Only the 64 largest are sorted, and more where a row needs more.
    """
    enough, count = p * weights.sum(-1, keepdim=True), min(64, weights.shape[-1])
    while True:
        top, tokens = weights.topk(count)
        mass = top.cumsum(-1)
        if count == weights.shape[-1] or bool((mass[:, -1:] >= enough).all()):
            break
        count = 8 * count if 32 * count < weights.shape[-1] else weights.shape[-1]
    missing = F.pad(mass[:, :-1], (1, 0)) < enough
    return torch.zeros_like(weights).scatter(-1, tokens, top * missing)


def keep_min_p(weights: Tensor, p: float) -> Tensor:
    """Those at least p times as likely as the likeliest. Nguyen et al., 2024 (arXiv 2407.01082)."""
    return weights.where(weights >= p * weights.amax(-1, keepdim=True), 0)


def keep_typical(weights: Tensor, mass: float) -> Tensor:
    """The fewest tokens whose share of the sum reaches the mass, those first whose surprise is nearest to the expected one.

    Meister et al., "Locally Typical Sampling", 2022 (arXiv 2202.00666).
    """
    p = weights / weights.sum(-1, keepdim=True)
    surprise = -p.log()
    expected = torch.special.entr(p).sum(-1, keepdim=True)
    order = (surprise - expected).abs().argsort(dim=-1, stable=True)  # impossible tokens last
    sorted_weights = weights.gather(-1, order)
    before = F.pad((sorted_weights / weights.sum(-1, keepdim=True)).cumsum(-1)[:, :-1], (1, 0))
    return torch.zeros_like(weights).scatter(-1, order, sorted_weights * (before < mass))


def within_sigmas(logits: Tensor, n: float) -> Tensor:
    """Logits, -inf where they are more than n standard deviations, of the possible ones, below the largest.

    Tang et al., "Top-n-sigma", 2024 (arXiv 2411.07641): the temperature does not change which tokens stay.
    """
    possible = logits > float("-inf")
    count = possible.sum(-1, keepdim=True)
    mean = logits.where(possible, 0.0).sum(-1, keepdim=True) / count
    variance = (logits - mean).where(possible, 0.0).square().sum(-1, keepdim=True) / count
    kept = logits >= logits.amax(-1, keepdim=True) - n * variance.sqrt()
    return logits.where(kept, float("-inf"))


class Repetition:
    """Makes tokens that a row has seen less likely: divides what is positive, multiplies what is negative. Keskar et al., 2019.

    (arXiv 1909.05858.) No value ever rises, so a seen token never gains on an unseen one, and the seen ones together never gain.
    penalty: at least 1; 1 changes nothing.
    mask:    (b, n), True for the real tokens of a prompt padded on the left; padding is not seen.
    """

    def __init__(self, penalty: float = 1.0, mask: Tensor | None = None) -> None:
        require(1 <= penalty < float("inf"), "repetition_penalty", penalty, "finite and at least 1")
        self.penalty, self.mask = penalty, mask
        self.seen: Tensor | None = None

    def __call__(self, values: Tensor, tokens: Tensor) -> Tensor:
        """values: logits or log-probabilities (rows, vocab_size). tokens: (rows, n), new since the last call."""
        if self.penalty == 1:
            return values
        if self.seen is None:
            self.seen = torch.zeros_like(values, dtype=torch.bool)
            tokens = tokens if self.mask is None else tokens.where(self.mask, tokens[:, -1:])
        self.seen.scatter_(1, tokens, True)
        return values.where(~self.seen, torch.minimum(values * self.penalty, values / self.penalty))

    def select(self, rows: Tensor) -> None:
        """As a decoder's `select`."""
        if self.seen is not None:
            self.seen = self.seen.index_select(0, rows)


def mix(state: Tensor) -> Tensor:
    """SplitMix64's output for int64 states, whose overflow wraps around."""
    state = (state ^ (state >> 30 & 2**34 - 1)) * (FIRST - MODULUS)
    state = (state ^ (state >> 27 & 2**37 - 1)) * (SECOND - MODULUS)
    return state ^ (state >> 31 & 2**33 - 1)


def row_seeds(seed: int, rows: int) -> Tensor:
    """(rows,) int64: the seeds of a batch; ``seed=row_seeds(seed, rows)[i : i + 1]`` draws row i alone as it is in the batch."""
    require(0 <= seed < 2**63, "seed", seed, "from 0 to 2**63 - 1")
    return mix(seed + torch.arange(1, rows + 1) * (GOLDEN - MODULUS))


def uniform(seeds: Tensor, step: int) -> Tensor:
    """(b,) float64 in [0, 1): number `step` of each row's SplitMix64 generator; the same on every device and torch version."""
    offset = (step + 1) * GOLDEN % MODULUS
    bits = mix(seeds + (offset - MODULUS if offset >= MODULUS // 2 else offset))
    return (bits >> 11 & 2**53 - 1).double() * 2.0**-53


def require_possible(likeliest: Tensor) -> None:
    """`ValueError` unless the largest logit of each row, which is NaN if one of them is, makes its token possible."""
    if not bool((likeliest > float("-inf")).all()):
        found = "NaN" if bool(likeliest.isnan().any()) else "-inf everywhere"
        raise ValueError(f"logits must be numbers, more than -inf for some token, got {found}")


class Sampler:
    """Draws tokens: logits (b, vocab_size) and the number of the step -> (b,).

    Where logits are +inf, these tokens are drawn, each as often. Errors: `ValueError` for NaN, and where all are -inf.

    temperature: divides the logits; below 1 sharpens, above 1 flattens.
    top_k, top_p, min_p, typical, top_n_sigma: filters; None, 1, 0, 1 and None leave all tokens.
    seed: every row has a generator of its own, so that the other rows do not change what it draws. An integer stands for
          ``row_seeds(seed, b)``, which a tensor (b,) gives directly; None draws one from torch's global generator.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical: float = 1.0,
        top_n_sigma: float | None = None,
        seed: int | Tensor | None = None,
    ) -> None:
        require(0 < temperature < float("inf"), "temperature", temperature, "positive and finite (0 would be `greedy`)")
        require(top_k is None or top_k > 0, "top_k", top_k, "positive, or None for all tokens")
        require(0 < top_p <= 1, "top_p", top_p, "above 0 and at most 1")
        require(0 <= min_p <= 1, "min_p", min_p, "from 0 to 1")
        require(0 < typical <= 1, "typical", typical, "above 0 and at most 1")
        require(top_n_sigma is None or 0 < top_n_sigma < float("inf"), "top_n_sigma", top_n_sigma, "positive and finite, or None")
        if isinstance(seed, Tensor):
            require_axes(seed, "seed", "batch")
            require(seed.dtype == torch.long, "seed", seed.dtype, "an integer or of dtype torch.int64")
        elif seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        else:
            row_seeds(seed, 0)
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.typical, self.top_n_sigma, self.seed = typical, top_n_sigma, seed
        self.seeds: Tensor | None = None

    def weights(self, logits: Tensor) -> Tensor:
        """(b, vocab_size) float64: what the probabilities of the tokens are proportional to."""
        logits = logits.double()
        top = logits.amax(-1, keepdim=True)
        require_possible(top)
        if self.top_n_sigma is not None and bool(top.isfinite().all()):
            logits = within_sigmas(logits, self.top_n_sigma)
        below = (logits - top).where(logits < top, 0.0)  # inf - inf is NaN
        weights = (below / self.temperature).softmax(-1)
        if self.top_k is not None:
            weights = keep_top_k(weights, self.top_k)
        if self.top_p < 1:
            weights = keep_top_p(weights, self.top_p)
        if self.min_p > 0:
            weights = keep_min_p(weights, self.min_p)
        return keep_typical(weights, self.typical) if self.typical < 1 else weights

    def seeds_for(self, logits: Tensor) -> Tensor:
        """(b,): the seed of each row of logits (b, vocab_size)."""
        if self.seeds is None or len(self.seeds) != len(logits):
            seeds = self.seed if isinstance(self.seed, Tensor) else row_seeds(self.seed, len(logits))
            require(len(seeds) == len(logits), "seed", tuple(seeds.shape), f"of length {len(logits)}, one for each row")
            self.seeds = seeds.to(logits.device)
        return self.seeds

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        seeds, mass = self.seeds_for(logits), self.weights(logits).cumsum(-1)
        return torch.searchsorted(mass, uniform(seeds, step)[:, None] * mass[:, -1:], right=True)[:, 0]
