"""The autoencoder against diffusers', by drawn latents and by their mean; its laws against torch's and numerical integration."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

import zoo
from layers.testing import Contract, Function, Twin, exercised, generator, initial_distribution, seeded, tensor
from zoo.autoencoder import VAE, Gaussian


def of_diffusers(a):
    levels = len(a.widths)
    return AutoencoderKL(
        in_channels=a.in_channels, out_channels=a.in_channels, latent_channels=a.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(a.widths), layers_per_block=a.depth, norm_num_groups=a.groups,
        mid_block_add_attention=a.attention,
    )  # fmt: skip


def their_reconstruction(theirs, inputs):
    """With noise drawn in float32, as ours is, where they draw in the dtype of the images."""
    law = theirs.encode(inputs["images"]).latent_dist
    latents = law.mode()
    if "generator" in inputs:
        noise = torch.randn(law.mean.shape, generator=inputs["generator"], dtype=torch.float32)
        latents = law.mean + law.std * noise.to(law.mean.dtype)
    return theirs.decode(latents).sample


def zero(a, parameter):
    return 0, 0


BEGINS_AS_IDENTITY = initial_distribution({"*.conv2.*": zero, "*.attention.output.*": zero})
ARGUMENTS = dict(
    widths=st.sampled_from([(4, 6), (4, 8, 4), (6,)]),
    in_channels=st.sampled_from([1, 3]),
    latent_channels=st.sampled_from([2, 3]),
    depth=st.sampled_from([1, 2]),
    groups=2,
    attention=st.sampled_from([True, False]),  # hypothesis begins with what stands first
)
DIFFUSERS = Twin(
    "diffusers", build=of_diffusers, weights=lambda a: VAE(**a.passed()).maps["diffusers"], call=their_reconstruction
)


def images(a):
    # at least 2 x 2 pixels everywhere: of a group of hardly any values a norm divides by about sqrt(eps), and rounding grows
    sizes = st.sampled_from([n * 2 ** (len(a.widths) - 1) for n in (2, 3, 4)])
    return dict(images=tensor("batch channels height width", channels=a.in_channels, height=sizes, width=sizes))


by_the_mean = Contract(
    VAE,
    arguments=ARGUMENTS,
    inputs=images,
    outputs=lambda a, s: ("batch", a.in_channels, s.height, s.width),
    twins=[DIFFUSERS],
    holds=[BEGINS_AS_IDENTITY, exercised(generator="in the contract below", groups="of the widths there, one that divides them")],
    invalid=[
        (dict(widths=()), "widths"), (dict(widths=(5,)), "groups"), (dict(groups=0), "groups"), (dict(depth=0), "depth"),
        (dict(in_channels=0), "in_channels"), (dict(latent_channels=0), "latent_channels"),
    ],
    model=True,
    name="VAE by the mean of its latents",
)  # fmt: skip

DRAWS = {
    "batch_rows": "what is drawn for a row depends on its place",
    "per_sample_gradients": "torch.func.vmap draws no random numbers from a generator",
} | dict.fromkeys(("trace", "export", "compile"), "a torch.Generator is no input of a graph")
by_samples = Contract(
    zoo.autoencoder.build,
    arguments=ARGUMENTS,
    inputs=lambda a: images(a) | dict(generator=generator()),
    outputs=lambda a, s: ("batch", a.in_channels, s.height, s.width),
    twins=[DIFFUSERS],
    holds=[seeded(), BEGINS_AS_IDENTITY, exercised(groups="of the widths there, one that divides them")],
    without=DRAWS | dict.fromkeys(("bad_argument",), "in the contract above"),
    model=True,
    name="VAE by samples of its latents",
)


def sampled(mean, log_variance, generator):
    return Gaussian(mean, log_variance).sample(generator)


sample = Contract(
    Function,
    arguments=dict(run=st.just(sampled)),
    inputs=lambda a: dict(
        mean=tensor("batch channels height"), log_variance=tensor("batch channels height"), generator=generator()
    ),
    outputs=lambda a, s: ("batch", s.channels, s.height),
    holds=[seeded()],
    without=DRAWS
    | dict.fromkeys(("parameters_used",), "no parameters")
    | dict.fromkeys(("bad_argument", "bad_input", "sizes_agree"), "test_bad_input_is_named")
    | dict.fromkeys(("finite",), "exp(1e4 / 2) is not: log_variance is clamped, which test_variances_are_bounded shows"),
    name="a sample of a Gaussian",
)


def laws(requires_grad=False):
    g = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(3, 2, 4, generator=g, dtype=torch.float64) for _ in range(2))
    return mean.requires_grad_(requires_grad), log_variance.requires_grad_(requires_grad)


def test_the_divergence_is_torchs():
    mean, log_variance = laws()
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(()), torch.ones(())))
    torch.testing.assert_close(Gaussian(mean, log_variance).divergence(), theirs.sum((1, 2)), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.3, -0.7), (-2.0, 1.1)])
def test_the_divergence_is_the_integral(mean, log_variance):
    """Of q (log q - log p) over 20 deviations on each side, by the trapezoidal rule."""
    law = Normal(torch.tensor(mean).double(), torch.tensor(log_variance / 2).double().exp())
    x = law.mean + law.stddev * torch.linspace(-20, 20, 4001, dtype=torch.float64)
    inside = law.log_prob(x).exp() * (law.log_prob(x) - Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(x))
    found = Gaussian(law.mean.reshape(1, 1), law.variance.log().reshape(1, 1)).divergence().item()
    assert found == pytest.approx(torch.trapezoid(inside, x).item(), abs=1e-12)


def test_the_gradient_goes_through_the_sample():
    """Of E f(z): by the sample, with fixed noise, it equals finite differences; d z / d mean = 1."""
    mean, log_variance = laws(requires_grad=True)

    def run(mean, log_variance):
        return Gaussian(mean, log_variance).sample(torch.Generator().manual_seed(7)).sin()

    assert torch.autograd.gradcheck(run, (mean, log_variance))
    z = Gaussian(mean, log_variance).sample(torch.Generator().manual_seed(7))
    of_mean, of_log_variance = torch.autograd.grad(z.sum(), (mean, log_variance))
    assert torch.equal(of_mean, torch.ones_like(mean))
    torch.testing.assert_close(of_log_variance, (z - mean) / 2, rtol=1e-13, atol=1e-15)


def test_samples_have_the_moments_of_their_law():
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[-1.0, 0.5]])
    z = Gaussian(mean.expand(40_000, 2), log_variance.expand(40_000, 2)).sample(torch.Generator().manual_seed(3))
    deviation = (log_variance / 2).exp()
    assert ((z.mean(0) - mean).abs() < 5 * deviation / 200).all()
    assert ((z.std(0) / deviation - 1).abs() < 5 / 80_000**0.5).all()


def test_noise_is_the_same_in_every_dtype():
    mean, log_variance = laws()
    whole = Gaussian(mean, log_variance).sample(torch.Generator().manual_seed(1))
    single = Gaussian(mean.float(), log_variance.float()).sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(single.double(), whole, rtol=1e-5, atol=1e-6)


def test_variances_are_bounded():
    law = Gaussian(torch.zeros(1, 2), torch.tensor([[-1e9, 1e9]]))
    assert law.log_variance.tolist() == [[-30, 20]]
    assert law.sample(torch.Generator().manual_seed(0)).isfinite().all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"log_variance must be of mean's shape \(1, 2\), got \(1, 3\)"):
        Gaussian(torch.zeros(1, 2), torch.zeros(1, 3))
    model = zoo.create("vae_small")
    with pytest.raises(ValueError, match=r"images must be of rows and columns that are multiples of 2, got \(1, 1, 8, 7\)"):
        model(torch.zeros(1, 1, 8, 7))
    with pytest.raises(ValueError, match="latents: channels must be 4"):
        model.decode(torch.zeros(1, 3, 4, 4))


def test_the_loss_is_the_bound():
    """From its parts, and its gradient, with fixed noise, against finite differences along a direction."""
    torch.manual_seed(0)
    model = VAE((4, 6), in_channels=1, latent_channels=2, depth=1, groups=2).double()
    x = torch.randn(3, 1, 4, 6, dtype=torch.float64)
    law = model.encode(x)
    made = model.decode(law.sample(torch.Generator().manual_seed(5)))
    expected = [((x[n] - made[n]).square().sum() / 2 + 0.3 * law.divergence()[n]).item() for n in range(3)]

    def loss():
        return model.loss(x, beta=0.3, generator=torch.Generator().manual_seed(5))

    assert loss().item() == pytest.approx(sum(expected) / 3, rel=1e-12)
    parameters = [*model.parameters()]
    gradients = torch.autograd.grad(loss(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(step * d)
            values.append(loss().item())
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-6)


def test_full_size_names_and_shapes_are_stable_diffusions():
    with torch.device("meta"):
        ours = zoo.create("vae_kl")
        theirs = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    theirs.load_state_dict(ours.maps["diffusers"].export(ours), strict=True, assign=True)
    assert sum(p.numel() for p in ours.parameters()) == 83_653_863


def test_latents_are_smaller():
    model = zoo.create("vae_small").eval()
    law = model.encode(torch.zeros(2, 1, 28, 8))
    assert law.mean.shape == (2, 4, 14, 4)
    assert model.decode(law.mean).shape == (2, 1, 28, 8)
    assert [*model.parts()] == ["encoder", "to_moments", "from_latents", "decoder"]
