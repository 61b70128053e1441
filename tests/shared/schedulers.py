"""diffusers' schedulers in float64, a network for them and for ours, and drawn schedules."""

from __future__ import annotations

import contextlib
import importlib
from unittest import mock

import torch
from hypothesis import strategies as st

from zoo.generation import diffusion

SEEDS = st.integers(0, 2**32 - 1)
KINDS = {"epsilon": "epsilon", "sample": "sample", "velocity": "v_prediction"}
BETAS = {diffusion.linear: dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)}
BETAS[diffusion.cosine] = dict(beta_schedule="squaredcos_cap_v2")


class InDouble:
    """A module whose float32 is its float64."""

    def __init__(self, module):
        self.module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self.module, name)


@contextlib.contextmanager
def in_double(scheduler):
    """Within, this class of diffusers 0.42.1 computes in float64 what it otherwise casts to float32."""
    module = importlib.import_module(scheduler.__module__)
    with contextlib.ExitStack() as stack:
        for name in ("torch", "np"):
            stack.enter_context(mock.patch.object(module, name, InDouble(getattr(module, name))))
        yield


def network(images, times, classes=None):
    """Depends on everything: images of any shape, times and classes."""
    bend = (times.double() * 0.37 + (0 if classes is None else classes)).sin().view(-1, *[1] * (images.ndim - 1))
    return (images * 0.7 + bend).tanh() * 0.8 + 0.3 * images.flip(1) - 0.1 * bend


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def diffusions(draw, zero=True, longest=1024):
    """Of ours, and the arguments of theirs that make the same; with no image left at the last time, where `zero` allows it."""
    make, kind, n = draw(st.sampled_from(list(BETAS))), draw(st.sampled_from(list(KINDS))), draw(st.integers(2, 60))
    if make is diffusion.linear and longest > 60:  # a long cosine leaves 5e-5 of the image: dividing by it loses more than 1e-12
        n = draw(st.sampled_from([n, longest]))
    zero = zero and kind != "epsilon" and draw(st.booleans())
    schedule = diffusion.zero_terminal(make(n), prediction=kind) if zero else make(n, prediction=kind)
    theirs = dict(num_train_timesteps=n, prediction_type=KINDS[kind], **BETAS[make])
    return schedule, theirs | (dict(rescale_betas_zero_snr=True) if zero else {})
