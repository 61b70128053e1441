"""Noise schedules: their published definitions, noise added and taken away, predictions into one another, loss weights, times."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedulers import SEEDS, diffusions, normal

from zoo.generation.diffusion import PREDICTIONS, Schedule, cosine, flow, from_betas, linear, zero_terminal
from zoo.generation.samplers import FINALS, SPACINGS, levels, spaced

SCHEDULES = diffusions().map(lambda both: both[0]) | st.builds(flow, st.integers(2, 60), st.sampled_from(PREDICTIONS[1:]))


def draw_times(schedule, count, seed):
    times = schedule.draw_times(count, generator=torch.Generator().manual_seed(seed))
    times[0], times[1] = (0.01 if schedule.flow else 0), schedule.steps - (not schedule.flow)
    return times


def retyped(schedule, kind):
    """The same levels for another prediction; where no image is left at the end, without that time."""
    keep = slice(None) if kind != "epsilon" or float(schedule.alpha[-1]) > 0 else slice(-1)
    return Schedule(schedule.alpha[keep], schedule.sigma[keep], kind, schedule.flow)


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_linear():
    """Ho et al., 2020: what is left of the image at the end, by exact products."""
    kept, schedule = Fraction(1), linear(50, 1e-4, 0.02)
    for beta, alpha, sigma in zip(torch.linspace(1e-4, 0.02, 50).double(), schedule.alpha, schedule.sigma, strict=True):
        kept *= 1 - Fraction(float(beta))
        assert math.isclose(alpha, math.sqrt(kept), rel_tol=1e-7)
        assert math.isclose(sigma, math.sqrt(1 - kept), rel_tol=1e-6)
    assert math.isclose(float(linear().alpha[-1]) ** 2, 4.0358e-5, rel_tol=1e-4)  # of T = 1000
    assert math.isclose(float(linear().sigma[0]), 0.01, rel_tol=1e-10)


@given(st.integers(1, 1000), st.floats(1e-3, 0.1))
def test_cosine(steps, offset):
    """Nichol and Dhariwal, 2021, equation 17, but for the end, where no beta is above 0.999."""
    schedule = cosine(steps, offset)
    f = [math.cos((t / steps + offset) / (1 + offset) * math.pi / 2) ** 2 for t in range(steps + 1)]
    for t, alpha in enumerate(schedule.alpha.tolist()):
        if f[t + 1] / f[t] >= 0.001:
            assert math.isclose(alpha**2, f[t + 1] / f[0], rel_tol=1e-9)
        else:
            assert t == steps - 1
            assert math.isclose(alpha**2, 0.001 * f[t] / f[0], rel_tol=1e-9)


@given(st.sampled_from([linear, cosine]), st.integers(2, 300))
def test_zero_terminal(make, steps):
    """Lin et al., 2023, algorithm 1: alpha is shifted to end at 0 and scaled to begin as it did."""
    before = make(steps)
    after = zero_terminal(before)
    assert float(after.alpha[-1]) == 0
    assert float(after.sigma[-1]) == 1
    close(after.alpha[0], before.alpha[0])
    close(after.alpha.diff() * (before.alpha[0] - before.alpha[-1]), before.alpha.diff() * before.alpha[0])
    assert float(after.snr(torch.tensor([steps - 1]))) == 0
    assert after.prediction == "velocity"


@given(SCHEDULES, SEEDS)
def test_an_exact_prediction_gives_the_image_and_the_noise_back(schedule, seed):
    images, noise, times = normal(seed, 6, 2, 3), normal(seed + 1, 6, 2, 3), draw_times(schedule, 6, seed)
    for kind in PREDICTIONS:
        known = retyped(schedule, kind) if not schedule.flow or kind != "epsilon" else None
        if known is None:
            continue
        now = times.clamp(max=known.steps - (not known.flow))
        noisy, target = known.add_noise(images, noise, now), known.target(images, noise, now)
        sample, found = known.split(target, noisy, now)
        tall = 1 / torch.cat(known.levels(now)).clamp(min=1e-9).min()  # what rounding errors are multiplied with
        if kind != "velocity":
            sample, found = (known.convert(target, noisy, now, to) for to in ("sample", "epsilon"))
        close(sample, images, 1e-14 * max(float(tall), 100.0))
        close(found, noise, 1e-14 * max(float(tall), 100.0))


@given(SCHEDULES, SEEDS)
def test_predictions_convert_into_each_other(schedule, seed):
    """There and back again, at times that have both image and noise."""
    noisy, said = normal(seed, 6, 2, 3), normal(seed + 1, 6, 2, 3)
    times = draw_times(schedule, 6, seed).clamp(max=schedule.steps - 2)
    times = times.clamp(min=0.5) if schedule.flow else times
    for kind, to in itertools.permutations(PREDICTIONS, 2):
        if schedule.flow and "epsilon" in (kind, to):
            continue
        one, other = retyped(schedule, kind), retyped(schedule, to)
        there = one.convert(said, noisy, times, to)
        tall = float(1 / torch.cat(one.levels(times)).min())
        close(other.convert(there, noisy, times, kind), said, 1e-13 * tall**2)
        assert not torch.allclose(there, said)
        for half, whole in zip(one.split(said, noisy, times), other.split(there, noisy, times), strict=True):
            close(half, whole, 1e-13 * tall**2)
        assert torch.equal(one.convert(said, noisy, times, kind), said) or kind == "velocity"


@given(SCHEDULES, SEEDS)
def test_noisy_images_have_the_variance_that_the_schedule_says(schedule, seed):
    images, noise = torch.zeros(6, 2, dtype=torch.float64), torch.ones(6, 2, dtype=torch.float64)
    times = draw_times(schedule, 6, seed)
    alpha, sigma = schedule.levels(times)
    close(schedule.add_noise(images, noise, times), sigma[:, None].expand(6, 2))
    close(schedule.add_noise(noise, images, times), alpha[:, None].expand(6, 2))
    close(alpha + sigma if schedule.flow else alpha.square() + sigma.square(), torch.ones(6, dtype=torch.float64))


@given(SCHEDULES, SEEDS, st.floats(0.5, 20))
def test_min_snr_weighs_the_same_error_alike(schedule, seed, gamma):
    """Whatever is predicted, the weighted squared error is min(SNR, gamma) times that of the image (Hang et al., 2023)."""
    noisy, said, off = normal(seed, 6, 4), normal(seed + 1, 6, 4), normal(seed + 2, 6, 4)
    times = draw_times(schedule, 6, seed).clamp(max=schedule.steps - 2)
    weights, snr = schedule.min_snr(times, gamma), schedule.snr(times)
    (right, _), (wrong, _) = schedule.split(said, noisy, times), schedule.split(said + off, noisy, times)
    close(weights * off.square().sum(1), snr.clamp(max=gamma) * (right - wrong).square().sum(1), 1e-7)
    if not schedule.flow:
        published = {"sample": 1, "epsilon": snr, "velocity": snr + 1}[schedule.prediction]
        close(weights, snr.clamp(max=gamma) / published, 1e-9)


def test_min_snr_over_a_training():
    """Hang et al., 2023, where the signal-to-noise ratio is above 5, where it is below, and where no image is left."""
    times, ratios = torch.arange(1000), linear().snr(torch.arange(1000))
    assert 100 < int((ratios > 5).sum()) < 900
    for kind, divisor in (("sample", 1.0), ("epsilon", ratios), ("velocity", ratios + 1)):
        close(linear(prediction=kind).min_snr(times), ratios.clamp(max=5) / divisor, 1e-9)
    times = torch.tensor([9])
    schedules = zero_terminal(linear(10)), zero_terminal(linear(10), "sample")
    assert [float(schedule.min_snr(times)) for schedule in schedules] == [0, 0]
    assert float(flow(10).min_snr(torch.tensor([10.0]))) == 0


@given(SCHEDULES, st.data(), st.sampled_from(SPACINGS))
def test_times_of_sampling_keep_to_their_definition(schedule, data, spacing):
    n, steps = schedule.steps, data.draw(st.integers(1, schedule.steps))
    times = spaced(schedule, steps, spacing)
    counted = [time - schedule.flow for time in times]  # from 0 to n - 1
    gaps = [before - after for before, after in itertools.pairwise(counted)]
    assert len(times) == steps
    assert all(0 <= time <= n - 1 for time in counted)
    assert all(gap > 0 for gap in gaps)
    even = (n - 1) / (steps - 1) if spacing == "linspace" and steps > 1 else n / steps
    assert all(abs(gap - even) < (1e-9 if schedule.flow else 1) for gap in gaps)
    assert counted[0] == n - 1 or spacing == "leading"
    assert counted[-1] == 0 or spacing == "trailing" or steps == 1
    if spacing == "leading":
        assert math.isclose(counted[0], n - n / steps, abs_tol=1e-9) or counted[0] == math.floor(n - n / steps)
    if spacing == "trailing":
        assert abs(counted[-1] - (n / steps - 1)) <= (1e-9 if schedule.flow else 0.5)
    if not schedule.flow:
        assert all(type(time) is int for time in times)
    if steps == n:
        assert counted == list(reversed(range(n)))
    for final in FINALS:
        path = levels(schedule, steps, spacing, final)
        assert [level.time for level in path[:-1]] == times
        last = (1.0, 0.0) if final == "zero" else (float(schedule.alpha[0]), float(schedule.sigma[0]))
        assert path[-1][1:] == last


def test_times_as_published():
    """Lin et al., 2023, table 2, counts from 1; ten of a thousand."""
    found = {spacing: [time + 1 for time in spaced(linear(), 10, spacing)] for spacing in SPACINGS}
    assert found["leading"] == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert found["linspace"] == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    assert found["trailing"] == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    assert spaced(linear(), 600, "leading")[0] == 998
    assert spaced(linear(5), 3, "leading") == [3, 1, 0]
    assert spaced(linear(5), 2, "trailing") == [4, 1]  # 2.5 of 5, counted from 1, is 2
    assert spaced(linear(4), 3, "linspace") == [3, 2, 0]
    assert [spaced(flow(10), 4, spacing) for spacing in SPACINGS] == [[8.5, 6, 3.5, 1], [10, 7.5, 5, 2.5], [10, 7, 4, 1]]


def test_times_of_training():
    rng = torch.Generator().manual_seed(3)
    whole = linear(5).draw_times(20_000, generator=rng)
    assert ((whole.bincount(minlength=5) / 20_000 - 0.2).abs() < 5 * math.sqrt(0.16 / 20_000)).all()
    between = flow(8).draw_times(20_000, generator=rng)
    assert 0 < float(between.min()) < 0.01
    assert 7.99 < float(between.max()) <= 8
    assert abs(float(between.mean()) / 8 - 0.5) < 5 * math.sqrt(1 / 12 / 20_000)
    for mean, deviation in ((0.0, 1.0), (-0.5, 0.7)):
        logits = (flow(8).draw_times(20_000, logit_normal=(mean, deviation), generator=rng).double() / 8).logit()
        assert abs(float(logits.mean()) - mean) < 5 * deviation / math.sqrt(20_000)
        assert abs(float(logits.std()) / deviation - 1) < 5 / math.sqrt(40_000)
    with mock.patch("torch.rand", lambda count, **_: torch.zeros(count)):
        assert flow(8).draw_times(1).tolist() == [8]  # never 0, where there is no noise to see
    before = torch.get_rng_state()
    again = [flow(8).draw_times(4, logit_normal=(0, 1), generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*again)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("schedule", [linear(), cosine(prediction="velocity"), flow()])
def test_short_numbers(schedule, dtype):
    """The levels are rounded to float32 at the least, results to the images' numbers."""
    images, noise, times = normal(0, 64, 3).to(dtype), normal(1, 64, 3).to(dtype), draw_times(schedule, 64, 0)
    for name in ("add_noise", "target"):
        found, exact = (
            getattr(schedule, name)(x.to(to), y.to(to), times)
            for x, y, to in ((images, noise, dtype), (images, noise, torch.float64))
        )
        assert found.dtype == dtype
        assert float((found - exact).abs().max()) <= 8 * torch.finfo(dtype).eps


def test_errors():
    half = torch.tensor([0.5], dtype=torch.float64).sqrt()
    images, times = torch.randn(2, 3), torch.tensor([0, 9])
    calls = {
        "steps": (
            lambda: linear(0),
            lambda: cosine(0),
            lambda: flow(0),
            lambda: spaced(linear(9), 10),
            lambda: spaced(flow(9), 0),
        ),
        "first": (lambda: linear(first=0.0), lambda: linear(first=0.5, last=0.1)),
        "offset": (lambda: cosine(offset=0.0),),
        "betas": (lambda: from_betas(torch.tensor([0.1, -0.1])), lambda: from_betas(torch.tensor([0.1, 1.1]))),
        "prediction": (
            lambda: linear(prediction="noise"),
            lambda: flow(prediction="epsilon"),
            lambda: zero_terminal(linear(), "epsilon"),
        ),
        "schedule": (lambda: zero_terminal(flow()), lambda: zero_terminal(linear(1))),
        "alpha": (
            lambda: Schedule(half.float(), half),
            lambda: Schedule(half[:0], half[:0]),
            lambda: Schedule(half.repeat(2), half.repeat(2)),
            lambda: Schedule(half, half / 2),
        ),
        "sigma": (lambda: Schedule(half, half.repeat(2)), lambda: Schedule(half + 1 - half, half * 0)),
        "times": (
            lambda: linear(9).add_noise(images, images, times),
            lambda: linear(9).snr(times - 1),
            lambda: linear(9).snr(times / 2),
            lambda: flow(9).snr(times * 2.0),
            lambda: linear(10).add_noise(images, images, times[:1]),
        ),
        "to": (lambda: linear(10).convert(images, images, times, "score"),),
        "gamma": (lambda: linear(10).min_snr(times, 0.0),),
        "logit_normal": (lambda: linear().draw_times(2, logit_normal=(0, 1)), lambda: flow().draw_times(2, logit_normal=(0, 0))),
        "spacing": (lambda: spaced(linear(), 3, "even"),),
        "final": (lambda: levels(linear(), 3, final="last"),),
    }
    for argument, wrong in calls.items():
        for call in wrong:
            with pytest.raises(ValueError, match=argument):
                call()
