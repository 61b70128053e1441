"""Losses of adversarial networks, and the penalties on the gradients of discriminators. All are means over the batch.

    logits of real and generated images (b,)     discriminator                             generator
    non_saturating  Goodfellow et al., 2014      softplus(-real) + softplus(fake)          softplus(-fake)
    hinge           Lim and Ye, 2017             relu(1 - real) + relu(1 + fake)           -fake
    wasserstein     Arjovsky et al., 2017        fake - real                               -fake
    relativistic    Jolicoeur-Martineau, 2018    softplus(fake - real)                     softplus(real - fake)

arXiv 1406.2661, 1705.02894, 1701.07875, 1807.00734. Row n of the relativistic loss compares real image n with generated image n,
so in conditional networks both must be of the same class. Proven against closed forms and finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from layers.checks import require_axes

Discriminator = Callable[..., Tensor]


@dataclass(frozen=True)
class Loss:
    """discriminator, generator: (logits of real images (b,), logits of generated ones (b,)) -> what to minimise, a scalar.

    relative: whether the generator's loss looks at the real logits; where not, they may be None.
    Errors: `ValueError` where the two are not of the same length.
    """

    of_discriminator: Callable[[Tensor, Tensor], Tensor]
    of_generator: Callable[[Any, Tensor], Tensor]
    relative: bool = False

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        require_axes(real, "real", "batch")
        require_axes(fake, "fake", "batch", batch=len(real))
        return self.of_discriminator(real, fake).mean()

    def generator(self, real: Tensor | None, fake: Tensor) -> Tensor:
        require_axes(fake, "fake", "batch")
        if self.relative:
            if real is None:
                raise ValueError("real must be the logits of real images, which this loss compares with, got None")
            require_axes(real, "real", "batch", batch=len(fake))
        return self.of_generator(real, fake).mean()


non_saturating = Loss(lambda real, fake: softplus(-real) + softplus(fake), lambda real, fake: softplus(-fake))
hinge = Loss(lambda real, fake: (1 - real).relu() + (1 + fake).relu(), lambda real, fake: -fake)
wasserstein = Loss(lambda real, fake: fake - real, lambda real, fake: -fake)
relativistic = Loss(lambda real, fake: softplus(fake - real), lambda real, fake: softplus(real - fake), relative=True)

LOSSES = {"non_saturating": non_saturating, "hinge": hinge, "wasserstein": wasserstein, "relativistic": relativistic}


def image_gradients(discriminator: Discriminator, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """The gradient of each image's logit by its pixels, (b, c * y * x), which itself can be differentiated.

    discriminator: (images, classes) -> logits (b,), or images -> logits where there are no classes. It must not mix the rows of a
    batch, as batch norm in training and `MinibatchStd` do: the sum of the logits is differentiated.
    """
    require_axes(images, "images", "batch channels height width")
    images = images.detach().requires_grad_()
    logits = discriminator(images) if classes is None else discriminator(images, classes)
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients.flatten(1)


def zero_centred_penalty(discriminator: Discriminator, images: Tensor, classes: Tensor | None = None) -> Tensor:
    """``mean |gradient|^2 / 2``, a scalar, to be multiplied by gamma: R1 at real images, R2 at generated ones.

    Mescheder et al., 2018 (arXiv 1801.04406), equation 9; `classes` and the discriminator as in `image_gradients`.
    """
    return image_gradients(discriminator, images, classes).square().sum(1).mean() / 2


def gradient_penalty(
    discriminator: Discriminator,
    real: Tensor,
    fake: Tensor,
    classes: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``mean (|gradient| - 1)^2`` at `interpolated` images, a scalar, to be multiplied by lambda, 10 in the paper.

    The norm is over all of an image's channels and pixels, and its derivative is 0 where the gradient is.
    Gulrajani et al., "Improved Training of Wasserstein GANs", 2017 (arXiv 1704.00028), section 4.
    """
    gradients = image_gradients(discriminator, interpolated(real, fake, generator=generator), classes)
    return (torch.linalg.vector_norm(gradients, dim=1) - 1).square().mean()


def interpolated(real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Images (b, c, y, x) somewhere between row n of `real` and row n of `fake`, at one drawn place for each row.

    generator: on the device of the images; None is torch's global one. It draws in float32, whatever the images are.
    """
    require_axes(real, "real", "batch channels height width")
    b, c, y, x = real.shape
    require_axes(fake, "fake", "batch channels height width", batch=b, channels=c, height=y, width=x)
    places = torch.rand(b, 1, 1, 1, generator=generator, device=real.device, dtype=torch.float32).to(real.dtype)
    return real + places * (fake - real)
