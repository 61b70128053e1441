"""Parts of diffusers, imported where a twin is built, and in float64 where they are float32 whatever they are given."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn


def of_diffusers(module):
    """A module of diffusers; tests that ask for one are skipped where it is missing."""
    pytest.importorskip("diffusers", reason="the extra twins brings it")
    return pytest.importorskip(f"diffusers.models.{module}")


class InFloat64:
    """torch, but for its float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


class Wide(torch.Tensor):
    """A tensor whose `float()` is `double()`."""

    def float(self, *args, **kwargs):
        return self.double()


class Timesteps(nn.Module):
    """Their `Timesteps` in float64: the formula is theirs, line by line."""

    def __init__(self, ours):
        super().__init__()
        self.embeddings = [of_diffusers("embeddings")]
        self.theirs = self.embeddings[0].Timesteps(ours.dim, ours.cosines_first, ours.frequency_shift, ours.scale)

    def forward(self, times):
        with mock.patch.object(self.embeddings[0], "torch", InFloat64()):
            return self.theirs(times.as_subclass(Wide)).as_subclass(torch.Tensor)


class SameTimes(nn.Module):
    """Our sines in float64, to stand in place of theirs."""

    def __init__(self, ours):
        super().__init__()
        self.ours = ours

    def forward(self, times):
        return self.ours(times, torch.float64)


def grid_table(dim, rows, columns):
    """Their table of places in a grid, (1, rows * columns, dim), not rounded to float32."""
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    return of_diffusers("embeddings").get_2d_sincos_pos_embed_from_grid(dim, torch.stack([x, y]))[None]
