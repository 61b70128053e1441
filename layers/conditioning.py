"""What a network of diffusion is told beside its noisy images, the time and a class, and how it listens; images as tokens.

    time       sines and cosines of it, then two linear layers      Ho et al., 2020 (arXiv 2006.11239)
    class      a table, with a last row for "no class"              Ho and Salimans, 2022 (arXiv 2207.12598)
    listening  norms whose scale, shift and gate are computed       Peebles and Xie, 2022 (arXiv 2212.09748)

Axes: b batch, c channels, y rows, x columns, n tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import is_traced, require, require_axes
from layers.embedding import require_indices, require_known
from layers.positions import Sinusoidal


class SinusoidalTime(nn.Module):
    """``sin(a_i), then cos(a_i), a_i = scale * t * max_period^(-i / (dim // 2 - frequency_shift))``: times (b,) -> (b, dim).

    times:           integers, or floats for continuous times. Half precision knows 256 or 2048 whole steps.
    cosines_first:   all cosines, then all sines.
    frequency_shift: 1 lets the last frequency be 1 / max_period, as in the code of DDPM; 0 in those of DiT and ADM.
    scale:           factor of the times, such as 1000 for those of flow matching, which go from 0 to 1.
    dtype:           of the result; unless given that of the times, or torch's default for integers.
    The last feature of an odd dim is 0. Angles are float64, so that the result is rounded once.
    Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (arXiv 2006.11239). Proven against `Timesteps` of diffusers with
    its float32 made float64; as it is, its table is off by up to 3.3e-5 at t = 999.
    """

    def __init__(
        self,
        dim: int,
        *,
        cosines_first: bool = False,
        frequency_shift: float = 1.0,
        scale: float = 1.0,
        max_period: float = 10000.0,
    ) -> None:
        super().__init__()
        require(dim >= 2, "dim", dim, "2 or more")
        require(0 <= frequency_shift < dim // 2, "frequency_shift", frequency_shift, f"from 0 to below dim // 2 = {dim // 2}")
        require(max_period > 0, "max_period", max_period, "positive")
        require(scale > 0, "scale", scale, "positive")
        self.dim, self.cosines_first, self.frequency_shift = dim, cosines_first, frequency_shift
        self.scale, self.max_period = scale, max_period

    def forward(self, times: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        require_axes(times, "times", "batch")
        require(not (times.is_complex() or times.dtype == torch.bool), "times", times.dtype, "numbers")
        numbers = torch.arange(self.dim // 2, dtype=torch.float64, device=times.device)
        frequencies = torch.exp(-math.log(self.max_period) * numbers / (self.dim // 2 - self.frequency_shift))
        angles = self.scale * (times.double().unsqueeze(-1) * frequencies)
        halves = [angles.cos(), angles.sin()] if self.cosines_first else [angles.sin(), angles.cos()]
        out = F.pad(torch.cat(halves, -1), (0, self.dim % 2))
        return out.to(dtype or (times.dtype if times.is_floating_point() else torch.get_default_dtype()))


class TimeEmbedding(nn.Module):
    """``down(silu(up(sines(times))))``: times (b,), integers or floats -> (b, dim).

    sines: `SinusoidalTime` of any number of features.
    Proven against `Timesteps` and `TimestepEmbedding` of diffusers.
    """

    def __init__(self, sines: SinusoidalTime, dim: int) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        self.sines, self.up, self.down = sines, nn.Linear(sines.dim, dim), nn.Linear(dim, dim)

    def forward(self, times: Tensor) -> Tensor:
        return self.down(F.silu(self.up(self.sines(times, self.up.weight.dtype))))


class ClassEmbedding(nn.Module):
    """classes (b,), each from 0 to `no_class`, the number of classes, which stands for none -> (b, dim).

    dropout: probability with which a class is replaced by `no_class` in training, so that one network learns to predict with and
             without: guidance without a classifier.
    Errors:  `ValueError` for classes that are no integers of 32 or 64 bits and, on the CPU, for unknown ones.
    Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022 (arXiv 2207.12598). Proven against `LabelEmbedding` of diffusers.
    """

    def __init__(self, num_classes: int, dim: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        require(num_classes > 0, "num_classes", num_classes, "positive")
        require(dim > 0, "dim", dim, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.no_class, self.dropout = num_classes, dropout
        self.table = nn.Embedding(num_classes + 1, dim)

    def forward(self, classes: Tensor) -> Tensor:
        require_axes(classes, "classes", "batch")
        require_indices(classes, "classes")
        if self.training and self.dropout > 0:
            if classes.is_cpu and not is_traced():  # else an unknown one would now and then be dropped, and not be told
                require_known(classes, "classes", self.no_class + 1)
            classes = classes.masked_fill(torch.rand(classes.shape, device=classes.device) < self.dropout, self.no_class)
        try:
            return self.table(classes)
        except IndexError:
            require_known(classes, "classes", self.no_class + 1)
            raise


class Modulation(nn.Module):
    """x (b, n, dim), condition (b, condition_dim) -> (``norm(x) * (1 + scale) + shift``, and `gates` factors (b, 1, dim)).

    Shift, scale and gates are a linear layer of silu(condition), which starts at zero; the layer norm has no weights.
    Peebles and Xie, "Scalable Diffusion Models with Transformers", 2022 (arXiv 2212.09748), whose last norm has no gate. Proven
    within `ModulatedNorm` and DiT.
    """

    def __init__(self, dim: int, condition_dim: int, gates: int = 0, *, eps: float = 1e-6) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        require(condition_dim > 0, "condition_dim", condition_dim, "positive")
        require(eps > 0, "eps", eps, "positive")
        self.dim, self.condition_dim, self.gates = dim, condition_dim, gates
        self.norm = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.linear = nn.Linear(condition_dim, (2 + gates) * dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        require_axes(x, "x", "batch tokens dim", dim=self.dim)
        require_axes(condition, "condition", "batch condition_dim", batch=x.shape[0], condition_dim=self.condition_dim)
        shift, scale, *gates = self.linear(F.silu(condition)).unsqueeze(1).chunk(2 + self.gates, -1)
        return (self.norm(x) * (1 + scale) + shift, *gates)


class ModulatedNorm(nn.Module):
    """adaLN-Zero: ``x + gate * sublayer(norm(x) * (1 + scale) + shift)``.

    x (b, n, dim), condition (b, condition_dim) -> (b, n, dim). The `Modulation` starts at zero, and so the block as the identity.
    sublayer: module (b, n, dim) -> (b, n, dim), such as an attention; whatever else the block is called with goes there.
    Peebles and Xie, 2022 (arXiv 2212.09748). Proven against `AdaLayerNormZeroSingle` of diffusers, and within DiT.
    """

    def __init__(self, sublayer: nn.Module, dim: int, condition_dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.sublayer, self.modulation = sublayer, Modulation(dim, condition_dim, 1, eps=eps)

    def forward(self, x: Tensor, condition: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        normed, gate = self.modulation(x, condition)
        return x + gate * self.sublayer(normed, *args, **kwargs)


class PatchEmbedding(nn.Module):
    """images (b, in_channels, y, x) -> tokens (b, n, dim), one for each square of patch_size pixels, row by row.

    A strided convolution, plus sines: half of the features tell the column, half the row. dim is a multiple of 4.
    Errors: `ValueError` for images that cannot be cut into patches.
    Dosovitskiy et al., 2020 (arXiv 2010.11929), with the sines of He et al., 2021 (arXiv 2111.06377). Proven against `PatchEmbed`
    of diffusers, whose table is float32.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        require(in_channels > 0, "in_channels", in_channels, "positive")
        require(dim > 0 and dim % 4 == 0, "dim", dim, "a positive multiple of 4")
        require(patch_size > 0, "patch_size", patch_size, "positive")
        self.in_channels, self.patch_size = in_channels, patch_size
        self.projection = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.positions = Sinusoidal(dim // 2, interleaved=False)

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        require_multiples(images, self.patch_size)
        grid = self.projection(images)
        columns, rows = (self.positions(torch.arange(n, device=grid.device), grid.dtype) for n in (grid.shape[3], grid.shape[2]))
        places = torch.cat([columns.expand(len(rows), -1, -1), rows[:, None].expand(-1, len(columns), -1)], -1)
        return rearrange(grid, "b d y x -> b (y x) d") + rearrange(places, "y x d -> (y x) d")


class PatchOutput(nn.Module):
    """tokens (b, n, dim) of patches in `rows` rows -> images (b, out_channels, y, x): the way back of `PatchEmbedding`.

    A linear layer to the pixels of a patch, row by row, channels last.
    Errors: `ValueError` for tokens that do not fill the rows. Proven against the end of `DiTTransformer2DModel` of diffusers.
    """

    def __init__(self, dim: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        require(out_channels > 0, "out_channels", out_channels, "positive")
        require(patch_size > 0, "patch_size", patch_size, "positive")
        self.dim, self.patch_size = dim, patch_size
        self.projection = nn.Linear(dim, patch_size * patch_size * out_channels)

    def forward(self, tokens: Tensor, rows: int) -> Tensor:
        require_axes(tokens, "tokens", "batch tokens dim", dim=self.dim)
        if rows < 1 or tokens.shape[1] % rows:
            raise ValueError(f"tokens: tokens must be a multiple of the {rows} rows, got shape {tuple(tokens.shape)}")
        p = self.patch_size
        return rearrange(self.projection(tokens), "b (y x) (p q c) -> b c (y p) (x q)", y=rows, p=p, q=p)


def require_multiples(images: Tensor, factor: int) -> None:
    """Raise `ValueError` unless height and width of images (b, c, y, x) are positive multiples of `factor`."""
    for axis, size in (("height", images.shape[2]), ("width", images.shape[3])):
        if size % factor or size == 0:
            raise ValueError(f"images: {axis} must be a positive multiple of {factor}, got shape {tuple(images.shape)}")
