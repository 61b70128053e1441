"""Every public block of `layers` and every name of the zoo stands in a contract, or is named here with its test."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given
from torch import nn

import layers
import zoo
from layers.testing import Contract
from layers.testing.fresh import unpromised

TESTS = Path(__file__).resolve().parent


def module_of(path):
    """The test module, which is not imported again where pytest has collected it."""
    found = next((m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(path)), None)
    if found is None:
        spec = importlib.util.spec_from_file_location(f"contracts_of_{path.parent.name}_{path.stem}", path)
        found = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = found
        spec.loader.exec_module(found)
    return found


def contracts(room):
    found = [c for path in sorted((TESTS / room).glob("test_*.py")) for c in vars(module_of(path)).values()]
    return [c for c in found if isinstance(c, Contract)]


@cache
def called(room):
    """All functions that are called while the contracts of `tests/room` build the blocks that they draw, as code objects."""
    codes = set()

    def note(frame, event, argument):
        if event == "call":
            codes.add(frame.f_code)

    for contract in contracts(room):

        @hypothesis.settings(max_examples=4, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
                             suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(contract.cases())
        def build(case):
            before = sys.getprofile()
            sys.setprofile(note)
            try:
                case.new()
            finally:
                sys.setprofile(before)

        build()
    return codes


def blocks():
    """Modules of `layers`, and functions that build one; those that take a model and return it changed are none."""
    for found in pkgutil.iter_modules(layers.__path__):
        module = importlib.import_module(f"layers.{found.name}")
        for name, block in vars(module).items():
            if name.startswith("_") or getattr(block, "__module__", "") != module.__name__:
                continue
            if inspect.isclass(block) and issubclass(block, nn.Module):
                yield f"{found.name}.{name}", block.__init__.__code__ if "__init__" in vars(block) else None, block
            elif inspect.isfunction(block):
                hints = typing.get_type_hints(block) if block.__module__ != "layers.weights" else {}
                makes, takes = hints.get("return"), [t for n, t in hints.items() if n != "return"]
                if inspect.isclass(makes) and issubclass(makes, nn.Module) and nn.Module not in takes:
                    yield f"{found.name}.{name}", block.__code__, block


BLOCKS = list(blocks())


def test_there_are_blocks_to_look_for():
    names = {name for name, _, _ in BLOCKS}
    assert {"attention.MultiHeadAttention", "residual.bottleneck", "inception.inception_e", "feedforward.GEGLU"} <= names
    assert not {"convolution.fold_norms", "winograd.use_winograd", "normalization.synchronise_norms"} & names


@pytest.mark.parametrize(("name", "code", "block"), BLOCKS, ids=[name for name, _, _ in BLOCKS])
def test_every_public_block_stands_in_a_contract(name, code, block):
    """By itself, or as a part of what a contract of `tests/layers` builds."""
    if code is None:  # a class without a constructor of its own is looked for by name
        assert any(contract.block is block for contract in contracts("layers")), name
    else:
        assert code in called("layers"), f"layers.{name} is built by no contract in tests/layers"


PROMISED_ELSEWHERE = {
    "conditioning.Modulation": "the contract of ModulatedNorm, which passes its own on",
    "positions.RelativeBias": "tests/layers/test_defaults.py: its contract wraps it",
}
"""Blocks with numbers as defaults that no contract names."""


@pytest.mark.parametrize(("name", "block"), [(name, block) for name, _, block in BLOCKS], ids=[name for name, _, _ in BLOCKS])
def test_numbers_that_are_defaults_are_promised_with_their_source(name, block):
    missing = unpromised(block, contracts("layers"))
    assert bool(missing) == (name in PROMISED_ELSEWHERE), missing


def held_at_full_size():
    """Names of one function with other depths, whose class is under contract: outputs equal the twin's at full size."""
    vgg, resnet = (module_of(TESTS / "zoo" / f"test_{family}.py") for family in ("vgg", "resnet"))
    assert vgg.test_full_size_outputs_are_torchvisions
    assert resnet.test_full_size_outputs_are_torchvisions
    assert resnet.test_full_size_nets_for_cifar_are_of_torchvisions_blocks
    return {*vgg.NAMES, *resnet.TORCHVISIONS, *resnet.CIFAR}


@pytest.mark.parametrize("name", zoo.names())
def test_every_name_of_the_zoo_stands_in_a_contract(name):
    """The function that builds it builds a contract's model too, or the name is held against its twin at full size."""
    build = zoo.MODELS[name]
    build = getattr(build, "func", build)
    assert build.__code__ in called("zoo") or name in held_at_full_size(), f"{name} is under no contract"
