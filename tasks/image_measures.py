"""How near generated images are to real ones, measured in features of a classifier, as sets (n, d) of real and made ones.

The distances compare laws and depend on how many images there are: compare figures of the same numbers only. The neighbourhoods
tell two failures apart: made images that are not like real ones (precision, density), real ones that nothing made is like
(recall, coverage).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from layers.checks import require, require_axes

NEIGHBOURS = 5
"""Whose farthest bounds the neighbourhood of an image."""
ROWS = 1024
"""Of a table of distances that is made at a time."""


def measures(real: Tensor, made: Tensor) -> dict[str, float]:
    """All of them by name. Errors: `ValueError` for sets of other axes, too few images, or features that are not finite."""
    require_axes(real, "real", "images features")
    require_axes(made, "made", "images features", features=real.shape[1])
    for name, x in (("real", real), ("made", made)):
        require(len(x) > NEIGHBOURS, name, f"{len(x)} images", f"more than {NEIGHBOURS}, the neighbours that are looked at")
        require(bool(x.isfinite().all()), name, "features that are not finite", "finite")
    real, made = real.double(), made.double()
    return {
        "frechet_distance": frechet_distance(real, made),
        "kernel_distance": kernel_distance(real, made),
        **neighbourhoods(real, made),
    }


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Of the two normal laws with the sets' means and covariances, squared. Source: Heusel et al., 2017 (arXiv 1706.08500).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), whose last trace is the sum of the roots of the eigenvalues of C C'.
    """
    one, other = real.T.cov(), made.T.cov()
    roots = torch.linalg.eigvals(one @ other).real.clamp(min=0).sqrt().sum()
    shift = (real.mean(0) - made.mean(0)).square().sum()
    return float(shift + one.trace() + other.trace() - 2 * roots)


def kernel_distance(real: Tensor, made: Tensor) -> float:
    """Squared maximum mean discrepancy of the kernel (x.y / d + 1)^3, without bias: below 0 by chance where the laws are one.

    Source: Binkowski et al., 2018 (arXiv 1801.01401).
    """

    def total(x: Tensor, y: Tensor) -> float:
        return sum(float(((part @ y.T / x.shape[1] + 1) ** 3).sum()) for part in x.split(ROWS))

    def within(x: Tensor) -> float:
        itself = float(((x.square().sum(1) / x.shape[1] + 1) ** 3).sum())
        return (total(x, x) - itself) / (len(x) * (len(x) - 1))

    return within(real) + within(made) - 2 * total(real, made) / (len(real) * len(made))


def neighbourhoods(real: Tensor, made: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """precision: made images within a real one's neighbourhood; recall: the other way round; as parts of 1.
    density:   real neighbourhoods around a made image, over `neighbours`: 1 in the mean where the laws are one.
    coverage:  real images in whose neighbourhood there is a made one.

    Sources: Kynkaanniemi et al., 2019 (arXiv 1904.06991); Naeem et al., 2020 (arXiv 2002.09797).
    """
    around_real, around_made = radii(real, neighbours), radii(made, neighbours)
    held = torch.cat([(distances <= around_real).sum(1) for _, distances in distances_of(made, real)]).double()
    recalled, covered = 0, 0
    for rows, distances in distances_of(real, made):
        recalled += int((distances <= around_made).any(1).sum())
        covered += int((distances.amin(1) <= around_real[rows]).sum())
    return {
        "precision": float((held > 0).double().mean()),
        "recall": recalled / len(real),
        "density": float(held.mean()) / neighbours,
        "coverage": covered / len(real),
    }


def radii(x: Tensor, neighbours: int) -> Tensor:
    """(n,): how far the farthest of the nearest neighbours of each is, itself left out."""
    return torch.cat([distances.kthvalue(neighbours + 1, dim=1).values for _, distances in distances_of(x, x)])


def nearest_pictures(made: Tensor, pixels: Any, part: int = 4096) -> tuple[Tensor, Tensor]:
    """Of pictures (n, c, y, x), of which `part` are read at a time, the nearest to each made one, and its distance in bytes."""
    pictures, distances = made, torch.full((len(made),), math.inf)
    for indices in torch.arange(len(pixels)).split(part):
        some = pixels[indices]
        index, apart = nearest(made.flatten(1).float(), some.flatten(1).float())
        closer = apart < distances
        pictures = torch.where(closer.view(-1, 1, 1, 1), some[index], pictures)
        distances = torch.minimum(apart, distances)
    return pictures, distances


def nearest(made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The real one that is nearest to each made one: its number and its distance, both (n,)."""
    found = [distances.min(1) for _, distances in distances_of(made, real)]
    return torch.cat([indices for _, indices in found]), torch.cat([values for values, _ in found])


def distances_of(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Which rows of x, and their distances from all of y. Not by products of vectors, of which near ones are mostly rounding."""
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")
