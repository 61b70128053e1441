"""DiT: Peebles and Xie, "Scalable Diffusion Models with Transformers", 2022 (arXiv 2212.09748).

Images as patches through a Transformer whose norms listen to time and class. Proven against `DiTTransformer2DModel` of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from layers.attention import MultiHeadAttention
from layers.checks import require
from layers.conditioning import (
    ClassEmbedding,
    ModulatedNorm,
    Modulation,
    PatchEmbedding,
    PatchOutput,
    SinusoidalTime,
    TimeEmbedding,
)
from layers.feedforward import FeedForward
from layers.unet import zeroed
from layers.weights import WeightMap
from zoo.model import DiffusionModel


class DiTBlock(nn.Module):
    """x (b, n, dim), condition (b, dim) -> (b, n, dim): an attention and a feed-forward network, each in a `ModulatedNorm`."""

    def __init__(self, dim: int, heads: int, hidden_dim: int, eps: float, feedforward_eps: float) -> None:
        super().__init__()
        self.attention = ModulatedNorm(MultiHeadAttention(dim, heads), dim, dim, eps=eps)
        feedforward = FeedForward(dim, hidden_dim, activation=nn.GELU("tanh"))
        self.feedforward = ModulatedNorm(feedforward, dim, dim, eps=feedforward_eps)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.feedforward(self.attention(x, condition), condition)


class DiT(DiffusionModel):
    """images (b, in_channels, y, x), times (b,), classes (b,) -> what is predicted of the images, (b, out_channels, y, x).

    dim, heads, layers, hidden_dim: of the Transformer; hidden_dim is 4 dim unless given. dim is a multiple of 4.
    patch_size: pixels on a side of what becomes one token; rows and columns of images are multiples of it.
    sines:      of the time; 256 cosines and sines unless given, as in the authors' code. That of diffusers has frequency_shift 1.
    classes:    how many there are, None for a network that knows none; class_dropout: of `ClassEmbedding`.
    eps:        of the norms; feedforward_eps: of those before the feed-forward networks, eps unless given.
    Weights that diffusers publishes go with its sines, of frequency_shift 1, and feedforward_eps 1e-5, its `norm_eps`.
    A fresh network puts out zeros, since norms and last layer start so.
    Errors: `ValueError` for images of other sizes, other channels, unknown classes, and classes of a network that knows none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        *,
        patch_size: int = 2,
        in_channels: int = 3,
        out_channels: int | None = None,
        hidden_dim: int | None = None,
        sines: SinusoidalTime | None = None,
        classes: int | None = None,
        class_dropout: float = 0.1,
        eps: float = 1e-6,
        feedforward_eps: float | None = None,
    ) -> None:
        super().__init__()
        feedforward_eps = eps if feedforward_eps is None else feedforward_eps
        require(feedforward_eps > 0, "feedforward_eps", feedforward_eps, "positive")
        require(layers > 0, "layers", layers, "positive")
        self.references = {"diffusers": names_of_diffusers}
        self.in_channels, self.out_channels = in_channels, in_channels if out_channels is None else out_channels
        self.patch_size = self.multiple = patch_size
        sines = SinusoidalTime(256, cosines_first=True, frequency_shift=0.0) if sines is None else sines
        self.patches = PatchEmbedding(in_channels, dim, patch_size)
        self.time = TimeEmbedding(sines, dim)
        self.class_embedding = None if classes is None else ClassEmbedding(classes, dim, dropout=class_dropout)
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        self.blocks = nn.ModuleList(DiTBlock(dim, heads, hidden_dim, eps, feedforward_eps) for _ in range(layers))
        self.norm = Modulation(dim, dim, eps=eps)
        self.output = PatchOutput(dim, self.out_channels, patch_size)
        self.apply(initialised)
        for module in self.modules():
            if isinstance(module, Modulation):
                module.reset_parameters()
        for layer in (self.time.up, self.time.down):
            nn.init.normal_(layer.weight, std=0.02)
        zeroed(self.output.projection)

    def predict(self, images: Tensor, condition: Tensor) -> Tensor:
        x = self.patches(images)
        for block in self.blocks:
            x = block(x, condition)
        x, *_ = self.norm(x, condition)
        return self.output(x, images.shape[2] // self.patch_size)


def initialised(module: nn.Module) -> None:
    """Glorot's uniform law and zero biases, patches as a linear layer; N(0, 0.02^2) for the table of classes."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.detach().flatten(1))
        nn.init.zeros_(module.get_parameter("bias"))
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def names_of_diffusers(model: DiT) -> WeightMap:
    """Our names and those of `DiTTransformer2DModel`, each of whose blocks has time and classes of its own, all of them equal."""
    ours, theirs = "blocks.{i}", "transformer_blocks.{i}"

    def everywhere(name: str) -> str:
        return " ".join(f"transformer_blocks.{i}.norm1.emb.{name}" for i in range(len(model.blocks)))

    rows: list[tuple[str, ...]] = [
        ("patches.projection", "pos_embed.proj"),
        ("norm.linear", "proj_out_1"),
        ("output.projection", "proj_out_2"),
        (f"{ours}.attention.sublayer.query", f"{theirs}.attn1.to_q"),
        (f"{ours}.attention.sublayer.key", f"{theirs}.attn1.to_k"),
        (f"{ours}.attention.sublayer.value", f"{theirs}.attn1.to_v"),
        (f"{ours}.attention.sublayer.output", f"{theirs}.attn1.to_out.0"),
        (f"{ours}.feedforward.sublayer.up", f"{theirs}.ff.net.0.proj"),
        (f"{ours}.feedforward.sublayer.down", f"{theirs}.ff.net.2"),
    ]
    for kind, axes in (("weight", "o i"), ("bias", "o")):
        both = " ".join(f"{ours}.{part}.modulation.linear.{kind}" for part in ("attention", "feedforward"))
        rows += [(both, f"{theirs}.norm1.linear.{kind}", f"two {axes} -> (two o){axes[1:]}")]
        for own, linear in (("up", "linear_1"), ("down", "linear_2")):
            rows += [(f"time.{own}.{kind}", everywhere(f"timestep_embedder.{linear}.{kind}"))]
    rows += [("class_embedding.table.weight", everywhere("class_embedder.embedding_table.weight"))]
    return WeightMap(*rows)


def build(
    network: Callable[..., DiT],
    in_channels: int = 3,
    classes: int | None = None,
    class_dropout: float = 0.1,
    patch_size: int = 2,
    time_scale: float = 1.0,
) -> DiT:
    """The options of all variants. time_scale: factor of the times, 1000 for times from 0 to 1."""
    sines = SinusoidalTime(256, cosines_first=True, frequency_shift=0.0, scale=time_scale)
    return network(in_channels=in_channels, classes=classes, class_dropout=class_dropout, patch_size=patch_size, sines=sines)


VARIANTS: dict[str, Callable[..., DiT]] = {
    "dit_small": partial(build, partial(DiT, 128, 4, 4)),  # for 8 to 28 pixels: 1.3 million parameters
    "dit_s_2": partial(build, partial(DiT, 384, 6, 12)),  # table 1 of the paper
    "dit_b_2": partial(build, partial(DiT, 768, 12, 12)),
}
"""Widths, heads and layers by name. Options are those of `build`."""
