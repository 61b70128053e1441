"""Two processes that divide a model compute what one does that adds up the same micro-batches, whatever way they divide it."""

from __future__ import annotations

import json
import random
from functools import cache
from types import SimpleNamespace

import pytest
import sharded
import torch
from sharded import CASES, twin

import zoo
from tasks.sharding import Sharding
from zoo import files

FSDP = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)
WAYS = ["none", pytest.param("fsdp", marks=pytest.mark.skipif(not FSDP, reason="torch 2.9"))]
pytestmark = pytest.mark.processes


@cache
def expected(name: str):
    return twin(CASES[name], 2).state_dict()


def model_in(folder):
    tensors = files.read_tensors(folder / "last.safetensors")
    return {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")}


@pytest.fixture(scope="module", params=WAYS)
def steps(request, launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    done = launch("steps", folder, f"shard={request.param}", *CASES, task="sharded", ranks=2)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["tied", "frozen", "unused"])
def test_the_bits_are_those_of_one_process(steps, name):
    """Dropout and accumulation on, a last micro-batch of which one process gets nothing; and what is frozen has not moved."""
    found = model_in(steps / name)
    assert found.keys() == expected(name).keys()
    different = [key for key, x in found.items() if not torch.equal(x, expected(name)[key])]
    assert not different


@pytest.mark.parametrize("name", ["clipped", "muon", "sgd"])
def test_what_depends_on_a_whole_gradient_or_another_kernel_is_equal_to_rounding(steps, name):
    torch.testing.assert_close(model_in(steps / name), dict(expected(name)), rtol=1e-9, atol=1e-12)


def progress(folder):
    return json.loads(files.read_metadata(folder / "last.safetensors")["progress"])["sums"]


@pytest.mark.parametrize("name", ["clipped", "muon", "short"])
def test_metrics_and_tokens_are_those_of_the_whole_batch(steps, name, start):
    """Whatever was divided, losses, metrics and what is decoded are those of one process and one micro-batch."""
    run = start(sharded.Texts(), sharded.model_of(**CASES[name]), **sharded.given(CASES[name], accumulate=1))
    rows, found = [run.train_step(indices) for indices in sharded.batches()], progress(steps / name)
    short = name == "short"  # bfloat16: two digits
    for n, row in enumerate(rows):
        assert found[f"step {n + 1}"]["loss"] == pytest.approx(row["loss"], rel=2e-2 if short else 1e-10)
    if short:
        assert {x.dtype for x in model_in(steps / name).values()} == {torch.float32}
        return
    assert found["evaluation"] == pytest.approx(run.evaluate(), rel=1e-10)
    assert found["evaluation"]["tokens"] == int(found["evaluation"]["tokens"]) > 0


@pytest.mark.parametrize("shard", WAYS)
def test_layers_that_are_shared_too(launch, tmp_path, shard, start):
    """Four processes: two see examples of their own, and each of these is two that share every layer."""
    done = launch("steps", tmp_path, f"shard={shard}", "tensor=2", "clipped", task="sharded", ranks=4)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(model_in(tmp_path / "clipped"), dict(expected("clipped")), rtol=1e-9, atol=1e-12)
    run = start(sharded.Texts(), sharded.model_of(**CASES["clipped"]), **sharded.given(CASES["clipped"]))
    for indices in sharded.batches():
        run.train_step(indices)
    assert progress(tmp_path / "clipped")["evaluation"] == pytest.approx(run.evaluate(), rel=1e-9)
    moments = {k: x for k, x in files.read_tensors(tmp_path / "clipped" / "last.safetensors").items() if k.endswith("exp_avg")}
    whole = [state["exp_avg"] for state in run.optimizers["model"].state_dict()["state"].values()]
    torch.testing.assert_close([moments[f"optimizer.{n}.exp_avg"] for n in range(len(whole))], whole, rtol=1e-8, atol=1e-12)


SEED = 0
"""Of the blows."""


@pytest.mark.parametrize(("shard", "count"), [("none", 0), ("fsdp", 1)])
def test_slices_for_one_process_are_told(shard, count):
    accelerator = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"))
    told = Sharding(accelerator, SimpleNamespace(shard=shard, tensor=1, precision="fp32")).told
    assert len(told) == count
    assert all("torchrun --nproc-per-node 2 " in line for line in told)


@pytest.mark.skipif(not FSDP, reason="torch 2.9")
@pytest.mark.parametrize(("world", "dropout"), [(2, 0.3), (1, 0.0)])
def test_a_run_whose_process_was_killed_goes_on(launch, tmp_path, world, dropout):
    """As if unbroken: to the same bits with as many processes, to rounding with another number (whose dropout is another one)."""
    draw = random.Random(f"{SEED} {world}")
    blow, victim = ("step", draw.randint(3, 9)), draw.randint(0, 1)
    given = ["shard=fsdp", f"dropout={dropout}"]
    one = launch("fit", tmp_path / "unbroken", *given, task="sharded", ranks=world)
    assert one.returncode == 0, one.stderr
    struck = launch("fit", tmp_path / "killed", *given, task="sharded", ranks=2, blow=blow, victim=victim)
    assert struck.returncode != 0, f"drawn: {blow} in process {victim}"
    again = launch("fit", tmp_path / "killed", *given, task="sharded", ranks=world)
    assert again.returncode == 0, again.stderr
    bits = {"rtol": 0, "atol": 0} if world == 2 else {"rtol": 1e-9, "atol": 1e-12}
    for name in ("last.safetensors", "best.safetensors"):
        found = [files.read_tensors(tmp_path / run / name) for run in ("unbroken", "killed")]
        torch.testing.assert_close(*found, **bits)
    model = zoo.load(tmp_path / "killed")  # one file of the whole model, in one process
    assert model(torch.ones(1, 3, dtype=torch.long)).isfinite().all()
    assert model.state_dict().keys() == found[1].keys()
