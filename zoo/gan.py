"""Generative adversarial networks: a generator draws images, a discriminator tells them from real ones.

    dcgan    Radford et al., 2015 (arXiv 1511.06434): strided convolutions, batch norm, no pools; non-saturating loss
    wgan_gp  Gulrajani et al., 2017 (arXiv 1704.00028): the same with layer norm in the discriminator, Wasserstein loss, penalty
    r3gan    Huang et al., 2024 (arXiv 2501.05441): residual blocks of grouped convolutions, no norms; relativistic loss, R1, R2

Each also with classes: their embedding joins the latents, and the discriminator adds its product with the features (Miyato and
Koyama, "cGANs with Projection Discriminator", 2018, arXiv 1802.05637). Losses and penalties are in `zoo.gan_losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from layers.checks import require, require_axes
from layers.embedding import require_indices, require_known
from layers.residual import Residual
from zoo.model import Model

SLOPE = 0.2
"""Of every LeakyReLU, in all three papers."""


class Generator(nn.Module):
    """latents (b, latent_dim), classes (b,) -> images (b, c, y, x) in [-1, 1].

    body:        module from (b, latent_dim + class_dim) to images before the tanh; without classes from (b, latent_dim).
    num_classes: None for a generator that takes none. class_dim: features of their embedding.
    Errors: `ValueError` for latents of another length, and for classes that are missing, or there for nothing, or unknown.
    """

    def __init__(self, body: nn.Module, latent_dim: int, *, num_classes: int | None = None, class_dim: int = 16) -> None:
        super().__init__()
        require(latent_dim > 0, "latent_dim", latent_dim, "positive")
        self.latent_dim, self.body = latent_dim, body
        self.classes = embedding(num_classes, class_dim)

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        require_axes(latents, "latents", "batch latent_dim", latent_dim=self.latent_dim)
        check_classes(classes, latents.shape[0], self.classes)
        if classes is not None and self.classes is not None:
            latents = torch.cat([latents, embedded(classes, self.classes)], 1)
        return self.body(latents).tanh()


class Discriminator(nn.Module):
    """images (b, in_channels, image_size, image_size), classes (b,) -> logits (b,), positive for what looks real.

    body: module from the images to features (b, features).
    Errors: `ValueError` for images of another size, and for classes that are missing, or there for nothing, or unknown.
    """

    def __init__(
        self, body: nn.Module, features: int, *, image_size: int, in_channels: int = 1, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.in_channels, self.image_size, self.body = in_channels, image_size, body
        self.output = nn.Linear(features, 1)
        self.classes = embedding(num_classes, features)

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        size = self.image_size
        require_axes(images, "images", "batch channels height width", channels=self.in_channels, height=size, width=size)
        check_classes(classes, images.shape[0], self.classes)
        features = self.body(images)
        logits = self.output(features).squeeze(1)
        if classes is None or self.classes is None:
            return logits
        return logits + (features * embedded(classes, self.classes)).sum(1)


def embedding(num_classes: int | None, dim: int) -> nn.Embedding | None:
    require(num_classes is None or num_classes > 0, "num_classes", num_classes, "positive, or None")
    require(dim > 0, "class_dim", dim, "positive")
    return None if num_classes is None else nn.Embedding(num_classes, dim)


def check_classes(classes: Tensor | None, batch: int, known: nn.Embedding | None) -> None:
    if (classes is None) != (known is None):
        expected = "None: the model knows no classes" if known is None else f"(b,) numbers below {known.num_embeddings}"
        raise ValueError(f"classes must be {expected}, got {None if classes is None else tuple(classes.shape)}")
    if classes is not None and known is not None:
        require_indices(classes, "classes")
        require_axes(classes, "classes", "batch", batch=batch)


def embedded(classes: Tensor, table: nn.Embedding) -> Tensor:
    """Classes (b,) -> (b, dim). Errors: `ValueError` for one that the table has not."""
    try:
        return table(classes)
    except IndexError:
        require_known(classes, "classes", table.num_embeddings)
        raise


class GAN(Model):
    """Both parts, to be trained, saved and frozen by name: "generator", "discriminator". Calling it generates."""

    outputs = ("images",)

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    def forward(self, latents: Tensor, classes: Tensor | None = None) -> Tensor:
        return self.generator(latents, classes)


def grid_sizes(image_size: int, least: int = 2) -> list[int]:
    """Rows from the smallest grid to the image, each twice the one before: 28 -> [7, 14, 28], 8 -> [4, 8]; `least` so many."""
    sizes = [image_size]
    while sizes[0] % 2 == 0 and sizes[0] > 4:
        sizes.insert(0, sizes[0] // 2)
    require(len(sizes) >= least, "image_size", image_size, "an even number above 4, such as 8, 28 or 32")
    return sizes


def positive(**numbers: int) -> None:
    for name, number in numbers.items():
        require(number > 0, name, number, "positive")


# ------------------------------------------------------------------------------------------------------------------------- DCGAN


def strided_generator(in_dim: int, image_size: int, in_channels: int = 1, width: int = 32) -> nn.Sequential:
    """(b, in_dim) -> images before the tanh: a linear layer to the smallest grid, then transposed convolutions that double it.

    The last layer but one has `width` channels, each one before it twice those of the next.
    """
    positive(in_dim=in_dim, in_channels=in_channels, width=width)
    sizes = grid_sizes(image_size)
    widths = [width * 2**n for n in range(len(sizes) - 1)][::-1]
    grid = widths[0], sizes[0], sizes[0]
    layers: list[nn.Module] = [nn.Linear(in_dim, widths[0] * sizes[0] ** 2, bias=False), nn.Unflatten(1, grid)]
    for before, after in pairwise(widths):
        layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, in_channels, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)


def strided_discriminator(
    image_size: int, in_channels: int = 1, width: int = 32, norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d
) -> nn.Sequential:
    """images -> (b, `strided_features`): strided convolutions to the smallest grid, the first without a norm."""
    positive(in_channels=in_channels, width=width)
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
    for n in range(1, len(grid_sizes(image_size)) - 1):
        channels = width * 2**n
        layers.append(nn.Conv2d(channels // 2, channels, 4, stride=2, padding=1, bias=norm is None))
        layers += ([] if norm is None else [norm(channels)]) + [nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Flatten())


def strided_features(image_size: int, width: int) -> int:
    sizes = grid_sizes(image_size)
    return width * 2 ** (len(sizes) - 2) * sizes[0] ** 2


@torch.no_grad()
def init_dcgan(module: nn.Module) -> None:
    """N(0, 0.02^2) for all weights, N(1, 0.02^2) for those of norms, zero biases: section 4 of the paper, and its code."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)
    if isinstance(getattr(module, "bias", None), Tensor):
        nn.init.zeros_(module.get_parameter("bias"))


def strided(
    norm: Callable[[int], nn.Module] | None,
    image_size: int,
    in_channels: int = 1,
    latent_dim: int = 64,
    num_classes: int | None = None,
    class_dim: int = 16,
    width: int = 32,
) -> GAN:
    """The options of DCGAN and WGAN-GP; `norm` is the discriminator's."""
    positive(latent_dim=latent_dim, class_dim=class_dim)
    in_dim = latent_dim + (0 if num_classes is None else class_dim)
    body = strided_generator(in_dim, image_size, in_channels, width)
    generator = Generator(body, latent_dim, num_classes=num_classes, class_dim=class_dim)
    discriminator = Discriminator(
        strided_discriminator(image_size, in_channels, width, norm),
        strided_features(image_size, width),
        image_size=image_size,
        in_channels=in_channels,
        num_classes=num_classes,
    )
    model = GAN(generator, discriminator)
    model.apply(init_dcgan)
    return model


# ------------------------------------------------------------------------------------------------------------------------- R3GAN


def residual_block(channels: int, group_size: int = 16, expansion: int = 2, blocks: int = 1) -> Residual:
    """``x + conv1x1(conv3x3(conv1x1(x)))`` without norms: twice the channels within, in groups; images (b, c, y, x) -> the same.

    blocks: how many follow one another in the network. In place of norms, the last convolution starts at zero and the others
            small by blocks^(-1/4) (Zhang et al., "Fixup Initialization", 2019, arXiv 1901.09321).
    """
    positive(channels=channels, group_size=group_size, expansion=expansion, blocks=blocks)
    hidden_dim = channels * expansion
    require(hidden_dim % group_size == 0, "group_size", group_size, f"a divisor of the {hidden_dim} channels within")
    up, last = nn.Conv2d(channels, hidden_dim, 1), nn.Conv2d(hidden_dim, channels, 1, bias=False)
    grouped = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim // group_size)
    for conv in (up, grouped):
        init_leaky(conv, blocks**-0.25)
    nn.init.zeros_(last.weight)
    body = nn.Sequential(up, nn.LeakyReLU(SLOPE), grouped, nn.LeakyReLU(SLOPE), last)
    return Residual(body, nn.Identity(), nn.Identity())


@torch.no_grad()
def init_leaky(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    """He's normal law for LeakyReLU with the fan-in, times a gain; a zero bias."""
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    layer.weight.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Basis(nn.Module):
    """A learnt grid for each channel, weighted by a linear function of the latents: (b, in_dim) -> (b, channels, size, size)."""

    def __init__(self, in_dim: int, channels: int, size: int) -> None:
        super().__init__()
        positive(in_dim=in_dim, channels=channels, size=size)
        self.grid = nn.Parameter(torch.randn(channels, size, size))
        self.weights = nn.Linear(in_dim, channels, bias=False)
        nn.init.normal_(self.weights.weight, std=in_dim**-0.5)

    def forward(self, latents: Tensor) -> Tensor:
        return self.grid * self.weights(latents)[..., None, None]


def stages(sizes: list[int], width: int, depth: int, group_size: int, resample: Callable[[], nn.Module]) -> list[nn.Module]:
    """`depth` residual blocks at every size, `resample` between them."""
    positive(depth=depth)
    layers: list[nn.Module] = []
    for n in range(len(sizes)):
        layers += [resample()] if n else []
        layers += [residual_block(width, group_size, blocks=depth * len(sizes)) for _ in range(depth)]
    return layers


def r3gan(
    image_size: int,
    in_channels: int = 1,
    latent_dim: int = 64,
    num_classes: int | None = None,
    class_dim: int = 16,
    width: int = 96,
    depth: int = 2,
    group_size: int = 16,
    patch: int = 1,
) -> GAN:
    """`depth` blocks of `width` channels at every size; between sizes bilinear upsampling, and means over 2 x 2 pixels.

    patch: the networks work on patches of that many rows and columns of pixels, which saves the largest grid.
    Differs from the paper's code in the tanh, which keeps images in [-1, 1], and in the filters between sizes.
    """
    positive(patch=patch, in_channels=in_channels, width=width, latent_dim=latent_dim, class_dim=class_dim)
    require(image_size % patch == 0, "patch", patch, f"a divisor of image_size {image_size}")
    grid_sizes(image_size)
    require(image_size // patch >= 4, "patch", patch, f"at most a quarter of image_size {image_size}")
    sizes = grid_sizes(image_size // patch, least=1)
    pixels = in_channels * patch**2
    in_dim = latent_dim + (0 if num_classes is None else class_dim)
    up = partial(nn.Upsample, scale_factor=2, mode="bilinear")
    to_pixels, from_pixels = nn.Conv2d(width, pixels, 1), nn.Conv2d(pixels, width, 1)
    for layer in (to_pixels, from_pixels):
        init_leaky(layer)
    drawn = nn.Sequential(
        Basis(in_dim, width, sizes[0]),
        *stages(sizes, width, depth, group_size, up),
        to_pixels,
        Rearrange("b (c p q) y x -> b c (y p) (x q)", p=patch, q=patch),
    )
    seen = nn.Sequential(
        Rearrange("b c (y p) (x q) -> b (c p q) y x", p=patch, q=patch),  # nn.PixelUnshuffle leaves empty batches as they are
        from_pixels,
        *stages(sizes, width, depth, group_size, partial(nn.AvgPool2d, 2)),
        nn.Conv2d(width, width, sizes[0], groups=width, bias=False),
        nn.Flatten(),
    )
    return GAN(
        Generator(drawn, latent_dim, num_classes=num_classes, class_dim=class_dim),
        Discriminator(seen, width, image_size=image_size, in_channels=in_channels, num_classes=num_classes),
    )


layer_norm = partial(nn.GroupNorm, 1)
"""Over channels and pixels, which section 4 of WGAN-GP recommends: batch norm would mix the rows that the penalty keeps apart."""

VARIANTS: dict[str, Callable[..., GAN]] = {
    "dcgan_8": partial(strided, nn.BatchNorm2d, image_size=8),
    "dcgan_28": partial(strided, nn.BatchNorm2d, image_size=28),
    "wgan_gp_8": partial(strided, layer_norm, image_size=8),
    "wgan_gp_28": partial(strided, layer_norm, image_size=28),
    "r3gan_8": partial(r3gan, image_size=8, width=64, patch=2),  # gamma 0.2
    "r3gan_28": partial(r3gan, image_size=28, width=32, patch=2),  # gamma 1
}
"""By the rows and columns of their images, 8 as of scikit-learn's digits, 28 as of MNIST. Options: `strided`'s and `r3gan`'s."""
