"""Samplers whose network is right: distributions and solutions in closed form, orders of convergence; inversion; options."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedulers import SEEDS, diffusions, network, normal

from zoo.generation import samplers
from zoo.generation.diffusion import PREDICTIONS, cosine, flow, linear, zero_terminal
from zoo.generation.samplers import FINALS, SAMPLERS, SPACINGS, invert, levels, sample, stream

ODE = ("ddim", "dpm++", "euler", "heun")
SCHEDULES = diffusions(longest=60).map(lambda both: both[0]) | st.builds(
    flow, st.integers(2, 60), st.sampled_from(PREDICTIONS[1:])
)
WEIGHTS, MEANS, DEVIATIONS = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-1.0, 0.8], [0.25, 0.4]))
MEAN = float(WEIGHTS @ MEANS)
VARIANCE = float(WEIGHTS @ (DEVIATIONS**2 + MEANS**2)) - MEAN**2


def mixture(x, alpha, sigma):
    """Of a mixture of two Gaussians under noise: the distribution function at x, and the expected image there."""
    variances, off = alpha**2 * DEVIATIONS**2 + sigma**2, x[..., None] - alpha * MEANS
    likely = (WEIGHTS.log() - variances.log() / 2 - off.square() / variances / 2).softmax(-1)
    images = (likely * (MEANS + alpha * DEVIATIONS**2 / variances * off)).sum(-1)
    return (WEIGHTS * torch.special.ndtr(off / variances.sqrt())).sum(-1), images


def right(schedule):
    """The network that predicts the mixture's images as well as can be."""

    def predict(x, times, classes):
        alpha, sigma = (float(level[0]) for level in schedule.levels(times[:1]))
        images = mixture(x, alpha, sigma)[1]
        return schedule.express(schedule.prediction, images, (x - alpha * images) / sigma, alpha, sigma)

    return predict


def error(schedule, sampler, steps, **options):
    """The solution of the differential equation in one dimension leaves each point's share of the mass below it as it is."""
    path = levels(schedule, steps, **options)
    noise = torch.special.ndtri(torch.linspace(0.05, 0.95, 19, dtype=torch.float64))[:, None]
    found = sample(right(schedule), noise, schedule, steps=steps, sampler=sampler, **options)
    before, after = (mixture(x, level.alpha, level.sigma)[0] for x, level in ((noise, path[0]), (found, path[-1])))
    return float((after - before).abs().max())


@pytest.mark.parametrize("sampler", ODE)
@pytest.mark.parametrize(
    "schedule",
    [
        linear(1281, last=0.0156),
        linear(1281, last=0.0156, prediction="sample"),
        zero_terminal(linear(1281, last=0.0156)),
        flow(1280),
        flow(1280, "sample"),
    ],
    ids=["linear", "linear-sample", "zero-terminal", "flow", "flow-sample"],
)
def test_order_of_convergence(sampler, schedule):
    """The error falls as 1 / steps, or as its square; the slope is fitted to three runs, the distances between them doubled."""
    errors = [error(schedule, sampler, 1 + k, spacing="linspace", final="first") for k in (64, 128, 256)]
    order = math.log2(errors[0] / errors[2]) / 2
    expected = 2 if sampler in ("heun", "dpm++") else 1
    assert abs(order - expected) < 0.2 * expected, errors
    assert errors[2] < (3e-3 if expected == 1 else 1e-3)


@pytest.mark.parametrize("sampler", ODE)
def test_sampling_ends_at_the_distribution(sampler):
    """Without noise at the end, from a cosine as well; the end is a step of first order."""
    for schedule in (linear(), cosine(), flow()):
        coarse, fine = (error(schedule, sampler, steps) for steps in (50, 400))
        assert fine < coarse / 4
        assert fine < (5e-3 if schedule.flow or sampler != "heun" else 2e-3)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (linear(200, 5e-4, 0.1), dict(sampler="ddpm")),
        (zero_terminal(linear(200, 5e-4, 0.1)), dict(sampler="ddpm")),
        (linear(200, 5e-4, 0.1, prediction="velocity"), dict(sampler="ddim", eta=0.5)),
        (flow(200), dict(sampler="ddpm")),
    ],
    ids=["ddpm", "zero-terminal", "ddim", "flow"],
)
def test_random_samples_have_the_distribution(schedule, options):
    """Mean, variance and distribution function, within five standard deviations of what drawing 10,000 explains."""
    count, rng = 10_000, torch.Generator().manual_seed(1)
    noise = torch.randn(count, 1, generator=rng, dtype=torch.float64)
    found = sample(right(schedule), noise, schedule, steps=200, generator=rng, **options)[:, 0]
    fourth = float((WEIGHTS * ((MEANS - MEAN) ** 4 + 6 * (MEANS - MEAN) ** 2 * DEVIATIONS**2 + 3 * DEVIATIONS**4)).sum())
    assert abs(float(found.mean()) - MEAN) < 5 * math.sqrt(VARIANCE / count)
    assert abs(float(found.var()) - VARIANCE) < 5 * math.sqrt((fourth - VARIANCE**2) / count)
    for point in (-1.2, -0.8, 0.0, 0.7, 1.3):
        share = float(mixture(torch.tensor([point], dtype=torch.float64), 1.0, 0.0)[0])
        assert abs(float((found < point).double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / count)


@given(SCHEDULES, SEEDS, st.data())
def test_one_image_is_found_by_every_sampler(schedule, seed, data):
    """Whose network knows it: the last step leads there, where no noise is to be left."""
    image, noise = normal(seed, 1, 3), normal(seed + 1, 2, 3)

    def predict(x, times, classes):
        alpha, sigma = (float(level[0]) for level in schedule.levels(times[:1]))
        return schedule.express(schedule.prediction, image.expand(2, 3), (x - alpha * image) / sigma, alpha, sigma)

    steps, spacing = data.draw(st.integers(1, schedule.steps)), data.draw(st.sampled_from(SPACINGS))
    for sampler in SAMPLERS:
        found = sample(predict, noise, schedule, steps=steps, sampler=sampler, spacing=spacing)
        torch.testing.assert_close(found, image.expand(2, 3), rtol=0, atol=1e-10)


@given(SCHEDULES, SEEDS, st.integers(1, 20), st.sampled_from(SPACINGS), st.sampled_from(FINALS))
def test_euler_is_ddim_and_ddim_at_eta_1_is_ddpm(schedule, seed, steps, spacing, final):
    noise, options = normal(seed, 2, 3), dict(steps=min(steps, schedule.steps), spacing=spacing, final=final)
    for one, other in ((dict(sampler="euler"), dict(sampler="ddim")), (dict(sampler="ddpm"), dict(sampler="ddim", eta=1.0))):
        runs = []
        for chosen in (one, other):
            rng = torch.Generator().manual_seed(seed)
            runs.append(sample(network, noise, schedule, generator=rng, **options, **chosen))
        torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [linear(prediction="velocity"), zero_terminal(cosine()), flow()])
@pytest.mark.parametrize("final", FINALS)
def test_ddim_inverts(schedule, final):
    """Exactly where the fixed point is found; a guess is off by less the more steps there are."""

    def gentle(x, times, classes):
        return 0.2 * (x + (times.double() / 500).sin()[:, None]).tanh()

    images, options = normal(0, 3, 4), dict(final=final, classes=torch.tensor([0, 1, 2]))
    noise = invert(gentle, images, schedule, steps=20, iterations=60, **options)
    back = sample(gentle, noise, schedule, steps=20, sampler="ddim", **options)
    torch.testing.assert_close(back, images, rtol=0, atol=1e-11)
    errors = []
    for steps in (20, 80):
        guess = invert(gentle, images, schedule, steps=steps, **options)
        errors.append(float((sample(gentle, guess, schedule, steps=steps, **options) - images).abs().max()))
    assert 1e-5 < errors[1] < errors[0] / 2.5, errors


@given(SCHEDULES, SEEDS, st.sampled_from(SAMPLERS), st.floats(-2, 9))
def test_guidance(schedule, seed, sampler, guidance):
    """Of 1 changes nothing, not a bit, and asks nothing more; else it goes on from the other prediction to that with a class."""
    noise, classes, asked = normal(seed, 2, 3), torch.tensor([3, 5]), []

    def watched(x, times, classes):
        asked.append(classes)
        return network(x, times, classes)

    def run(model, **options):
        rng = torch.Generator().manual_seed(seed)
        return sample(model, noise, schedule, steps=2, sampler=sampler, generator=rng, **options)

    plain = run(watched, classes=classes)
    calls = len(asked)
    assert all(given is classes for given in asked)
    assert torch.equal(plain, run(watched, classes=classes, guidance=1.0, negative=9))
    assert len(asked) == 2 * calls
    for negative in (None, 9, torch.tensor([9, 0])):
        other = torch.full((2,), negative) if type(negative) is int else negative

        def guided(x, times, given, other=other):
            without = network(x, times, other)
            return without + guidance * (network(x, times, given) - without)

        found = run(network, classes=classes, guidance=guidance, negative=negative)
        torch.testing.assert_close(found, run(guided, classes=classes), rtol=1e-12, atol=1e-12)


@given(SCHEDULES, SEEDS, st.sampled_from(SAMPLERS), st.integers(1, 9), st.sampled_from(FINALS))
def test_a_film(schedule, seed, sampler, steps, final):
    """Each step is there when it is asked for, the last is the sample; the generator, if random, is the one that is given."""
    noise, steps = normal(seed, 2, 3), min(steps, schedule.steps)
    before, kept, calls = noise.clone(), torch.get_rng_state(), []

    def watched(x, times, classes):
        calls.append(times)
        assert not torch.is_grad_enabled()
        return network(x, times, classes)

    def options():
        return dict(steps=steps, sampler=sampler, final=final, generator=torch.Generator().manual_seed(seed))

    film = stream(watched, noise, schedule, **options())
    assert not calls
    pictures = [next(film)]
    assert len(calls) == 1 + (sampler == "heun" and (steps > 1 or final == "first") and (schedule.flow or schedule.alpha[-1] > 0))
    pictures += film
    assert len(pictures) == steps
    assert [picture.time for picture in pictures] == samplers.spaced(schedule, steps)
    assert all(times.shape == (2,) and times.is_floating_point() == schedule.flow for times in calls)
    assert torch.equal(pictures[-1].images, sample(network, noise, schedule, **options()))
    assert torch.equal(noise, before)
    assert torch.equal(torch.get_rng_state(), kept)
    if final == "zero":
        torch.testing.assert_close(pictures[-1].images, pictures[-1].predicted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_short_numbers(sampler, dtype):
    noise = normal(0, 2, 3, 4, 4)
    for schedule in (linear(prediction="velocity"), flow()):
        short, exact = (
            sample(lambda x, *_: x.tanh() * 0.5, noise.to(to), schedule, steps=5, sampler=sampler)
            for to in (dtype, torch.float64)
        )
        assert short.dtype == dtype
        if sampler != "ddpm":
            assert float((short - exact).abs().max()) < 40 * torch.finfo(dtype).eps
        assert sample(network, noise[:0], schedule, steps=2, sampler=sampler).shape == (0, 3, 4, 4)


def test_clipping():
    """The predicted image is within the bound, and the noise follows from it: together they are what was seen."""
    noise = 3 * normal(0, 4, 5)
    for sampler, clip in itertools.product(SAMPLERS, (0.1, 0.7)):
        for schedule in (linear(prediction="sample"), flow()):
            film = list(stream(network, noise, schedule, steps=6, sampler=sampler, clip=clip))
            assert all(float(step.predicted.abs().max()) <= clip for step in film)
            assert float(film[-1].images.abs().max()) <= clip + 1e-12
            loose = sample(network, noise, schedule, steps=6, sampler=sampler, generator=torch.Generator(), clip=1e9)
            assert torch.allclose(loose, sample(network, noise, schedule, steps=6, sampler=sampler, generator=torch.Generator()))
    predict = samplers.Predictor(network, linear(), None, 1.0, None, 0.3)
    level = levels(linear(), 3)[1]
    image, rest = predict(noise, level)
    torch.testing.assert_close(level.alpha * image + level.sigma * rest, noise)


def test_errors():
    """Before the network is asked."""

    def never(*arguments):
        raise AssertionError("asked")

    noise, classes = torch.randn(2, 3), torch.tensor([0, 1])
    wrong = {
        "steps": [dict(steps=0), dict(steps=-1), dict(steps=11)],
        "sampler": [dict(sampler="plms")],
        "guidance": [dict(guidance=2.0), dict(guidance=math.nan, classes=classes), dict(guidance=0.0)],
        "classes": [dict(classes=classes[:1]), dict(classes=classes[None])],
        "negative": [dict(classes=classes, negative=classes[:1])],
        "clip": [dict(clip=0.0), dict(clip=math.inf)],
        "eta": [dict(eta=-0.1), dict(eta=1.1), dict(eta=0.5, sampler="euler")],
        "spacing": [dict(spacing="karras")],
        "final": [dict(final="none")],
    }
    for schedule in (linear(10), flow(10)):
        for argument, cases in wrong.items():
            for options in cases:
                with pytest.raises(ValueError, match=argument):
                    stream(never, noise, schedule, **dict(steps=3) | options)
        with pytest.raises(ValueError, match="noise"):
            stream(never, noise.long(), schedule, steps=3)
        with pytest.raises(ValueError, match="iterations"):
            invert(never, noise, schedule, steps=3, iterations=0)
        with pytest.raises(ValueError, match="steps"):
            invert(never, noise, zero_terminal(linear(10)), steps=1)
        with pytest.raises(ValueError, match="network"):  # one that says its variance as well
            sample(lambda x, *_: torch.cat([x, x], 1), noise, schedule, steps=3)
