"""Every step of every sampler is that of diffusers' schedulers, in float64, over drawn schedules and options.

Theirs are driven with our timesteps, for in 0.42.1 their own differ from the definition: "leading" ones are multiples of
n // steps, so that 600 of 1000 begin at 599 (DPM's of n // (steps + 1)); DPM's "linspace" has no 0, that of others is only 0
where there is one step, Euler's and Heun's is not rounded; and DDIM goes on to time - n // steps, which is not its next timestep
where steps do not divide n, nor with "linspace". The last test holds ours to theirs where they agree.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from schedulers import SEEDS, diffusions, in_double, network, normal

from zoo.generation import diffusion
from zoo.generation.samplers import FINALS, SPACINGS, levels, spaced, stream

diffusers = pytest.importorskip("diffusers", minversion="0.42.1", reason="the extra twins brings it")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@st.composite
def options(draw, schedule):
    steps = draw(st.integers(1, min(schedule.steps, 40)))
    return dict(steps=steps, spacing=draw(st.sampled_from(SPACINGS)), final=draw(st.sampled_from(FINALS)))


def clips(data, least=0.4):
    return data.draw(st.sampled_from([None, least, 1.0, 3.0]), "clip")


def assert_near(ours, theirs, tolerance=1e-12):
    assert ours.dtype == theirs.dtype == torch.float64
    error = (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt().clamp(min=1.0)
    assert float(error) <= tolerance, float(error)


def velocity(schedule, images, time):
    """What theirs are told about a flow, whatever the network predicts."""
    times = time.expand(len(images))
    return schedule.convert(network(images, times), images, times, "velocity")


FLOWS = st.builds(diffusion.flow, st.integers(2, 60), st.sampled_from(["velocity", "sample"]))


class Next(int):
    """What DDIM is told for the number of steps: n // it is the distance to the next timestep, which it takes for even."""

    def __rfloordiv__(self, n):
        return int(self)


@given(diffusions(), SEEDS, st.data())
def test_ddpm(schedules, seed, data):
    schedule, arguments = schedules
    steps, spacing, clip = data.draw(st.integers(1, min(schedule.steps, 40))), data.draw(st.sampled_from(SPACINGS)), clips(data)
    noise, rngs = normal(seed, 2, 3, 2), [torch.Generator().manual_seed(seed) for _ in range(2)]
    asked = dict(steps=steps, sampler="ddpm", spacing=spacing, clip=clip, generator=rngs[0])
    with in_double(diffusers.DDPMScheduler):
        theirs = diffusers.DDPMScheduler(**arguments, clip_sample=clip is not None, clip_sample_range=clip or 1.0)
        theirs.set_timesteps(timesteps=spaced(schedule, steps, spacing))
        images = noise
        for time, step in zip(theirs.timesteps, stream(network, noise, schedule, **asked), strict=True):
            found = theirs.step(network(images, time.expand(2)), int(time), images, generator=rngs[1])
            images = found.prev_sample
            # where the last time is not 0, they add noise of variance 1e-20 to what should have none
            last = time == theirs.timesteps[-1] and time > 0
            assert_near(step.images, images, 1e-9 if last else 1e-12)
            assert_near(step.predicted, found.pred_original_sample)


@given(diffusions(), SEEDS, st.data())
def test_ddim(schedules, seed, data):
    schedule, arguments = schedules
    chosen, clip = data.draw(options(schedule)), clips(data)
    # at eta 1 and where no image is left, they take the root of a rounding error
    eta = data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0] if float(schedule.alpha[-1]) > 0 else [0.0, 0.3, 0.9]), "eta")
    noise, rngs = normal(seed, 2, 3, 2), [torch.Generator().manual_seed(seed) for _ in range(2)]
    asked = dict(sampler="ddim", eta=eta, clip=clip, generator=rngs[0], **chosen)
    with in_double(diffusers.DDIMScheduler):
        theirs = diffusers.DDIMScheduler(
            **arguments,
            clip_sample=clip is not None,
            clip_sample_range=clip or 1.0,
            set_alpha_to_one=chosen["final"] == "zero",
        )
        images, times = noise, [*spaced(schedule, chosen["steps"], chosen["spacing"]), -1]
        for number, step in enumerate(stream(network, noise, schedule, **asked)):
            time, theirs.num_inference_steps = times[number], Next(times[number] - times[number + 1])
            said = network(images, torch.full((2,), time))
            found = theirs.step(said, time, images, eta=eta, use_clipped_model_output=True, generator=rngs[1])
            images = found.prev_sample
            assert step.time == time
            assert_near(step.images, images)
            assert_near(step.predicted, found.pred_original_sample)


@given(diffusions(zero=False), SEEDS, st.data())
def test_dpm_solver(schedules, seed, data):
    """Where no image is left, they put 2**-24 for alpha^2, ours is exact: not drawn."""
    compare_dpm_solver(*schedules, normal(seed, 2, 3, 2), clips(data), data.draw(options(schedules[0])))


@pytest.mark.parametrize("steps", [14, 15])
def test_dpm_solver_ends_with_first_order_below_15_steps(steps):
    chosen = dict(steps=steps, spacing="trailing", final="first")
    compare_dpm_solver(diffusion.linear(60), dict(num_train_timesteps=60), normal(0, 2, 3, 2), None, chosen)


def compare_dpm_solver(schedule, arguments, noise, clip, chosen):
    scheduler = diffusers.DPMSolverMultistepScheduler
    with in_double(scheduler):
        theirs = scheduler(**arguments, final_sigmas_type={"zero": "zero", "first": "sigma_min"}[chosen["final"]])
        theirs.set_timesteps(timesteps=spaced(schedule, chosen["steps"], chosen["spacing"]))
        run_dpm_solver(theirs, noise, schedule, clip, chosen)


@given(FLOWS, SEEDS, st.data())
def test_dpm_solver_on_a_flow(schedule, seed, data):
    """Theirs has no choice of timesteps there, so it is handed the levels."""
    chosen, clip = data.draw(options(schedule)), clips(data)
    noise, scheduler = normal(seed, 2, 3, 2), diffusers.DPMSolverMultistepScheduler
    path = levels(schedule, **chosen)
    with in_double(scheduler):
        theirs = scheduler(use_flow_sigmas=True, prediction_type="flow_prediction", num_train_timesteps=schedule.steps)
        theirs.set_timesteps(chosen["steps"])
        theirs.sigmas = torch.tensor([level.sigma for level in path], dtype=torch.float64)
        theirs.timesteps = torch.tensor([level.time for level in path[:-1]], dtype=torch.float64)
        theirs.register_to_config(final_sigmas_type={"zero": "zero", "first": "sigma_min"}[chosen["final"]])
        run_dpm_solver(theirs, noise, schedule, clip, chosen)


def run_dpm_solver(theirs, noise, schedule, clip, chosen):
    convert, thought = theirs.convert_model_output, []

    def convert_and_clip(*args, **kwargs):  # they have no such option
        found = convert(*args, **kwargs)
        thought.append(found if clip is None else found.clamp(-clip, clip))
        return thought[-1]

    theirs.convert_model_output = convert_and_clip
    images = noise
    asked = dict(sampler="dpm++", clip=clip, **chosen)
    for time, step in zip(theirs.timesteps, stream(network, noise, schedule, **asked), strict=True):
        said = velocity(schedule, images, time) if schedule.flow else network(images, time.expand(2))
        images = theirs.step(said, time, images).prev_sample
        if bool(images.isnan().any()):  # where the last step leads nowhere, they multiply 0 by infinity
            assert chosen["final"] == "first"
            assert step.time == levels(schedule, **chosen)[-1].time
            return
        assert_near(step.predicted, thought[-1])
        assert_near(step.images, images)


@given(diffusions(zero=False), SEEDS, st.data())
def test_euler(schedules, seed, data):
    """Their images are divided by alpha; where none is left, they put 2**-24 for alpha^2: not drawn."""
    schedule, arguments = schedules
    chosen = data.draw(options(schedule))
    noise, scheduler, path = normal(seed, 2, 3, 2), diffusers.EulerDiscreteScheduler, levels(schedule, **chosen)
    with in_double(scheduler):
        theirs = scheduler(**arguments, final_sigmas_type={"zero": "zero", "first": "sigma_min"}[chosen["final"]])
        theirs.set_timesteps(timesteps=[level.time for level in path[:-1]])
        images = noise / path[0].alpha
        ours = stream(network, noise, schedule, sampler="euler", **chosen)
        for time, there, step in zip(theirs.timesteps, path[1:], ours, strict=True):
            said = network(theirs.scale_model_input(images, time), time.expand(2))
            found = theirs.step(said, time, images)
            images = found.prev_sample
            assert_near(step.images, images * there.alpha)
            assert_near(step.predicted, found.pred_original_sample)


@given(diffusions(zero=False, longest=60), SEEDS, st.data())
def test_heun(schedules, seed, data):
    """They end without noise; a run that ends at time 0 is the beginning of one that goes on from there.

    Their second slope is divided by the smaller sigma / alpha, rounding errors of the larger image with it: those of a large step
    exceed 1e-12 and are not drawn.
    """
    schedule, arguments = schedules
    chosen, clip = data.draw(options(schedule)), clips(data)
    noise, path = normal(seed, 2, 3, 2), levels(schedule, **chosen)
    for (_, alpha, sigma), there in pairwise(path):
        assume(there.sigma == 0 or (sigma / alpha) ** 2 / (there.sigma / there.alpha) * there.alpha < 2000)
    times = [level.time for level in path[:-1]]
    further = [0] if chosen["final"] == "first" and times[-1] > 0 else []
    with in_double(diffusers.HeunDiscreteScheduler):
        theirs = diffusers.HeunDiscreteScheduler(**arguments, clip_sample=clip is not None, clip_sample_range=clip or 1.0)
        theirs.set_timesteps(timesteps=times + further)
        asked = iter(theirs.timesteps)
        images = noise / path[0].alpha
        for number, step in enumerate(stream(network, noise, schedule, sampler="heun", clip=clip, **chosen)):
            if chosen["final"] == "first" and number + 1 == len(times) and not further:
                assert_near(step.images, images * path[-1].alpha)  # ours leads nowhere
                return
            for half in range(1 if number + 1 == len(times + further) else 2):
                time = next(asked)
                found = theirs.step(network(theirs.scale_model_input(images, time), time.expand(2)), time, images)
                images = found.prev_sample
                if half == 0:
                    assert_near(step.predicted, found.pred_original_sample)
            assert_near(step.images, images * path[number + 1].alpha)


@given(FLOWS, SEEDS, st.data())
def test_euler_on_a_flow(schedule, seed, data):
    chosen = data.draw(options(schedule))
    noise, path = normal(seed, 2, 3, 2), levels(schedule, **chosen)
    with in_double(diffusers.FlowMatchEulerDiscreteScheduler):
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=schedule.steps)
        theirs.set_timesteps(sigmas=[level.sigma for level in path[:-1]])
        theirs.sigmas[-1] = path[-1].sigma
        images = noise
        ours = stream(network, noise, schedule, sampler="euler", **chosen)
        for time, step in zip(theirs.timesteps, ours, strict=True):
            images = theirs.step(velocity(schedule, images, time), time, images).prev_sample
            assert_near(step.images, images)


@given(FLOWS, SEEDS, st.data())
def test_heun_on_a_flow(schedule, seed, data):
    chosen = dict(data.draw(options(schedule)), final="zero")
    noise, path = normal(seed, 2, 3, 2), levels(schedule, **chosen)
    twice = torch.tensor([level.time for level in path[:-1]], dtype=torch.float64).repeat_interleave(2)[1:]
    with in_double(diffusers.FlowMatchHeunDiscreteScheduler):
        theirs = diffusers.FlowMatchHeunDiscreteScheduler(num_train_timesteps=schedule.steps)
        theirs.set_timesteps(chosen["steps"])
        theirs.timesteps, theirs.sigmas = twice, torch.cat([twice / schedule.steps, torch.zeros(1, dtype=torch.float64)])
        asked, images = iter(theirs.timesteps), noise
        for number, step in enumerate(stream(network, noise, schedule, sampler="heun", **chosen)):
            for _ in range(1 if number + 1 == chosen["steps"] else 2):
                time = next(asked)
                images = theirs.step(velocity(schedule, images, time), time, images).prev_sample
            assert_near(step.images, images)


@given(diffusions(), SEEDS)
def test_noise_is_added_alike(schedules, seed):
    schedule, arguments = schedules
    images, noise = normal(seed, 5, 3, 2), normal(seed + 1, 5, 3, 2)
    times = torch.randint(schedule.steps, (5,), generator=torch.Generator().manual_seed(seed))
    times[0], times[1] = 0, schedule.steps - 1
    with in_double(diffusers.DDPMScheduler):
        theirs = diffusers.DDPMScheduler(**arguments)
        assert_near(schedule.add_noise(images, noise, times), theirs.add_noise(images, noise, times))
        noisy = schedule.add_noise(images, noise, times)
        said = schedule.convert(schedule.target(images, noise, times), noisy, times, "velocity")
        assert_near(said, theirs.get_velocity(images, noise, times), 1e-10)  # through 1 / alpha or 1 / sigma


@given(st.integers(1, 60), st.integers(1, 17), st.sampled_from(["leading", "trailing"]))
def test_timesteps_are_theirs_where_theirs_keep_to_the_definition(steps, times, spacing):
    n = steps * times
    for scheduler in (diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler):
        theirs = scheduler(num_train_timesteps=n, timestep_spacing=spacing)
        theirs.set_timesteps(steps)
        assert theirs.timesteps.tolist() == spaced(diffusion.linear(n), steps, spacing)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=n)
    flow.set_timesteps(steps)
    torch.testing.assert_close(flow.timesteps.tolist(), spaced(diffusion.flow(n), steps, "linspace"), rtol=1e-6, atol=1e-4)
