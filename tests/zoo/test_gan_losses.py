"""Losses against closed forms; penalties against formulas written out, with the gradients that double backward gives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from layers.testing import Contract, Function, generator, seeded, tensor
from zoo.gan_losses import LOSSES, gradient_penalty, interpolated, zero_centred_penalty

REAL, FAKE = [0.3, -1.7, 2.5], [-0.4, 1.2, 0.9]


def log1pexp(x):
    return math.log(1 + math.exp(x))


CLOSED = {
    "non_saturating": (lambda r, f: log1pexp(-r) + log1pexp(f), lambda r, f: log1pexp(-f)),
    "hinge": (lambda r, f: max(0, 1 - r) + max(0, 1 + f), lambda r, f: -f),
    "wasserstein": (lambda r, f: f - r, lambda r, f: -f),
    "relativistic": (lambda r, f: log1pexp(f - r), lambda r, f: log1pexp(r - f)),
}


def logits(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_their_closed_forms(name):
    loss, real, fake = LOSSES[name], logits(*REAL), logits(*FAKE)
    for run, formula in zip((loss.discriminator, loss.generator), CLOSED[name], strict=True):
        expected = sum(formula(r, f) for r, f in zip(REAL, FAKE, strict=True)) / 3
        assert run(real, fake).item() == pytest.approx(expected, rel=1e-14)
        assert torch.autograd.gradcheck(run, (real, fake))


@pytest.mark.parametrize("name", LOSSES)
def test_each_part_wants_what_it_is_for(name):
    """The discriminator higher real logits and lower generated ones, the generator higher generated ones."""
    loss, real, fake = LOSSES[name], logits(*REAL), logits(*FAKE)
    of_real, of_fake = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    (wanted,) = torch.autograd.grad(loss.generator(real, fake), fake)
    assert (of_real <= 0).all()
    assert (of_fake >= 0).all()
    assert (wanted < 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_finite_for_sure_discriminators(name):
    loss, real, fake = LOSSES[name], logits(1e4, -1e4), logits(-1e4, 1e4)
    total = loss.discriminator(real, fake) + loss.generator(real, fake)
    assert all(x.isfinite().all() for x in (total, *torch.autograd.grad(total, (real, fake))))


def test_at_equal_logits_the_discriminator_knows_nothing():
    zero = logits(0.0)
    assert LOSSES["non_saturating"].discriminator(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert LOSSES["relativistic"].discriminator(logits(5.0), logits(5.0)).item() == pytest.approx(math.log(2))


def test_bad_logits_are_named():
    for name, loss in LOSSES.items():
        with pytest.raises(ValueError, match="fake: batch must be 3, got 2"):
            loss.discriminator(logits(*REAL), logits(1.0, 2.0))
        with pytest.raises(ValueError, match=r"fake must have 1 axes \(batch\), got shape \(3, 1\)"):
            loss.discriminator(logits(*REAL), logits(*FAKE)[:, None])
        assert loss.relative == (name == "relativistic")
        if not loss.relative:
            assert loss.generator(None, logits(*FAKE)).item() == loss.generator(logits(*REAL), logits(*FAKE)).item()
    with pytest.raises(ValueError, match="real must be the logits of real images"):
        LOSSES["relativistic"].generator(None, logits(*FAKE))
    with pytest.raises(ValueError, match="real: batch must be 3, got 2"):
        LOSSES["relativistic"].generator(logits(1.0, 2.0), logits(*FAKE))


# --------------------------------------------------------------------------------------------------------------------- penalties


class Tanh(nn.Module):
    """``v . tanh(W x)``, whose gradient by x and the derivatives of that are short formulas."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(5, 12, generator=g, dtype=torch.float64))
        self.v = nn.Parameter(torch.randn(5, generator=g, dtype=torch.float64))

    def forward(self, images):
        return (images.flatten(1) @ self.w.T).tanh() @ self.v

    def gradients(self, x):
        t = (x @ self.w.T).tanh()
        return (self.v * (1 - t**2)) @ self.w

    def pulled(self, x, h):
        """Derivatives of sum_b h_b . g_b, h fixed, by v and w: with s = 1 - t^2, d g_b / d v_j = s_bj w_j, and so on."""
        t = (x @ self.w.T).tanh()
        s, along = 1 - t**2, h @ self.w.T
        of_v = (s * along).sum(0)
        of_w = self.v[:, None] * (s.T @ h - 2 * (along * t * s).T @ x)
        return of_v, of_w


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_zero_centred_penalty_and_its_double_backward():
    """Half the mean squared norm: dP/dg_b = g_b / B."""
    net, images = Tanh(), drawn(1, 4, 3, 2, 2)
    penalty = zero_centred_penalty(net, images)
    with torch.no_grad():
        x = images.flatten(1)
        g = net.gradients(x)
        of_v, of_w = net.pulled(x, g / 4)
    assert penalty.item() == pytest.approx(sum((row @ row).item() for row in g) / 8, rel=1e-13)
    found = torch.autograd.grad(penalty, (net.v, net.w))
    torch.testing.assert_close(found, (of_v, of_w), rtol=1e-12, atol=1e-13)


def test_the_gradient_penalty_and_its_double_backward():
    """Mean of (|g| - 1)^2: dP/dg_b = 2 (|g_b| - 1) g_b / |g_b| / B, at one place between each pair of images."""
    net, real, fake = Tanh(), drawn(1, 4, 3, 2, 2), drawn(2, 4, 3, 2, 2)
    penalty = gradient_penalty(net, real, fake, generator=torch.Generator().manual_seed(6))
    places = torch.rand(4, generator=torch.Generator().manual_seed(6)).double()
    with torch.no_grad():
        x = torch.stack([(1 - p) * r + p * f for p, r, f in zip(places, real, fake, strict=True)]).flatten(1)
        g = net.gradients(x)
        norms = torch.stack([(row @ row).sqrt() for row in g])
        of_v, of_w = net.pulled(x, (2 * (norms - 1) / norms / 4)[:, None] * g)
    assert penalty.item() == pytest.approx(((norms - 1) ** 2).mean().item(), rel=1e-12)
    found = torch.autograd.grad(penalty, (net.v, net.w))
    torch.testing.assert_close(found, (of_v, of_w), rtol=1e-12, atol=1e-13)


def test_penalties_know_linear_discriminators():
    """The gradient is the weight everywhere, over all channels and pixels: |w| = 5 in each row."""
    weight = torch.tensor([3.0, 0.0, 0.0, 4.0]).reshape(1, 2, 2, 1)

    def linear(images):
        return (images * weight).sum((1, 2, 3))

    images = drawn(0, 6, 2, 2, 1).float()
    assert gradient_penalty(linear, images, -images).item() == pytest.approx((5 - 1) ** 2)
    assert zero_centred_penalty(linear, images).item() == pytest.approx(25 / 2)


def test_penalties_are_finite_where_the_gradient_is_zero():
    net = Tanh()
    with torch.no_grad():
        net.v.zero_()
    images = drawn(0, 2, 3, 2, 2)
    for penalty, value in ((gradient_penalty(net, images, images), 1), (zero_centred_penalty(net, images), 0)):
        assert penalty.item() == value
        assert all(g.isfinite().all() for g in torch.autograd.grad(penalty, (net.v, net.w)))


def test_penalties_hand_on_classes_and_leave_the_images_alone():
    images, classes = drawn(0, 3, 1, 2, 2).requires_grad_(), torch.tensor([0, 1, 2])

    def scaled(images, classes):
        return classes * images.sum((1, 2, 3))

    assert zero_centred_penalty(scaled, images, classes).item() == pytest.approx((0 + 1 + 4) * 4 / 3 / 2)
    assert gradient_penalty(scaled, images, images, classes).item() == pytest.approx((1 + 1 + 9) / 3)
    assert images.grad is None
    with pytest.raises(ValueError, match="images must have 4 axes"):
        zero_centred_penalty(scaled, images[0], classes)


between = Contract(
    Function,
    arguments=dict(run=st.just(interpolated)),
    inputs=lambda a: dict(
        real=tensor("batch channels height width"), fake=tensor("batch channels height width"), generator=generator()
    ),
    outputs=lambda a, s: ("batch", s.channels, s.height, s.width),
    holds=[seeded()],
    without={
        "batch_rows": "what is drawn for a row depends on its place",
        "per_sample_gradients": "torch.func.vmap draws no random numbers from a generator",
        "parameters_used": "no parameters",
        "bad_argument": "no arguments",
        "bad_input": "takes images of every size",
    }
    | dict.fromkeys(("trace", "export", "compile"), "a torch.Generator is no input of a graph"),
    name="images between two",
)


def test_one_place_for_all_channels_and_pixels_of_an_image():
    """Every row at its own place between 0 and 1, which all of its values share."""
    shape = 50, 2, 3, 4
    places = interpolated(torch.zeros(shape), torch.ones(shape), generator=torch.Generator().manual_seed(0)).flatten(1)
    assert (places == places[:, :1]).all()
    assert len(places[:, 0].unique()) == 50
    assert 0 <= places.min() < 0.1
    assert 0.9 < places.max() < 1
