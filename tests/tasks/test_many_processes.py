"""What is asked of several processes: said in one line where it cannot be, and recipes that say what the program knows."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import dies_in_its_second_epoch, rows, small
from toys import Adversaries, Pair

from tasks import commands, options, runs, text_generation
from tasks.image_classification import main
from tasks.options import EngineOptions, UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def torch_2_9(monkeypatch):
    monkeypatch.setattr(options, "version", lambda package: "2.9.0+cpu")


@pytest.mark.parametrize("found", ["2.6.0+cpu", "2.8.1"])
def test_a_torch_whose_fsdp_is_wrong_is_refused(monkeypatch, found):
    monkeypatch.setattr(options, "version", lambda package: found)
    with pytest.raises(UserError, match=f"--shard fsdp needs torch 2.9 or newer, this is {re.escape(found)}: 2.7 and 2.8 double"):
        EngineOptions(shard="fsdp")
    EngineOptions(tensor=2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shard": "fdsp"}, "--shard must be one of none, fsdp, got 'fdsp', did you mean fsdp?"),
        ({"tensor": 0}, "--tensor must be 1 or more, got 0"),
        ({"shard": "fsdp", "compile": True}, "--shard fsdp and --compile exclude each other"),
        ({"tensor": 2, "compile": True}, "--tensor 2 and --compile exclude each other"),
        ({"tensor": 2, "optimizer": "muon"}, "--tensor 2 and --optimizer muon exclude each other, for muon needs whole matrices"),
    ],
)
def test_what_cannot_be_is_one_line(torch_2_9, given, words):
    with pytest.raises(UserError, match=re.escape(words)):
        EngineOptions(device="cpu", **given)


def test_language_models_take_another_optimizer_for_parts_of_layers():
    assert text_generation.TrainOptions(tensor=2).optimizer == "adamw"
    with pytest.raises(UserError, match="take adamw"):
        text_generation.TrainOptions(tensor=2, optimizer="muon")


def test_the_number_of_processes_has_to_fit(start):
    with pytest.raises(UserError, match="--tensor 2: the number of processes must be a multiple of it, there are 1; torchrun"):
        start(tensor=2)


def test_several_losses_are_refused(start, torch_2_9):
    with pytest.raises(UserError, match="for models that are trained as one, not as discriminator, generator"):
        start(Adversaries(), Pair(), shard="fsdp")


def test_one_process_has_nothing_to_divide(start, torch_2_9):
    run = start(shard="fsdp")
    assert run.result is run.model


def written(folder, **about):
    folder.mkdir(exist_ok=True)
    (folder / "options.json").write_text(json.dumps({"about": about}))
    return folder


def test_a_restart_goes_on_with_its_own_run_only(tmp_path, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    folder = written(tmp_path / "a", launch="this")
    assert not runs.begun_here(folder)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not runs.begun_here(folder)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert runs.begun_here(folder)
    assert not runs.begun_here(tmp_path / "none")
    assert not runs.begun_here(written(tmp_path / "b", launch="other"))
    assert not runs.begun_here(written(tmp_path / "c"))
    (tmp_path / "d").mkdir()
    assert runs.begun_here(tmp_path / "d"), "it was killed before its first file"
    (tmp_path / "d" / ".options.json.1.part").touch()
    assert runs.begun_here(tmp_path / "d"), "and in writing it"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not runs.begun_here(written(tmp_path / "e", launch="none")), "which torchrun calls many a launch"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_JOB_ID", "this")
    assert runs.begun_here(folder)


def test_the_same_command_goes_on_after_a_restart(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this")
    command = [*small(pictures, tmp_path), "--epochs", "2"]

    with monkeypatch.context() as patch:
        dies_in_its_second_epoch(patch)
        assert main(command) == 130
    assert main(command) == 2, "another start is no restart"
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(command) == 0
    assert main(command[:-4] + command[-2:]) == 2, "without its name"
    assert "a restart needs --name" in capsys.readouterr().err
    assert [row["epoch"] for row in rows(tmp_path / "a")] == [1, 2]


# ------------------------------------------------------------------------------------------------------------- recipes


def known(line):
    """That the program takes the task's options in a line of a recipe."""
    task, *words = shlex.split(line)
    commands.parse(f"tasks.{task}", text_generation.COMMANDS, ["train", *words])


def test_the_recipes_for_clusters_can_be_read():
    shell, ray = ROOT / "deploy" / "slurm.sh", ROOT / "deploy" / "ray_train.py"
    subprocess.run(["bash", "-n", str(shell)], check=True)
    compile(ray.read_text(), str(ray), "exec")
    known(re.search(r"sbatch deploy/slurm.sh (.*)", shell.read_text())[1])
    known(re.search(r"ray_train.py 16 (.*)``", ray.read_text())[1])
    done = subprocess.run(["bash", str(shell)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: sbatch deploy/slurm.sh TASK OPTIONS" in done.stderr
    done = subprocess.run([sys.executable, str(ray), "many"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: python deploy/ray_train.py PROCESSES TASK OPTIONS\n")


def of_bench(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_numbers_of_its_script():
    collectives = of_bench("collectives")
    page = (ROOT / "docs" / "many-processes.md").read_text()
    for table in collectives.tables(collectives.parsed([])).strip().split("\n\n"):
        assert table in page, "python bench/collectives.py gives other tables"
    small = collectives.Size("one", 100, 10, 5, 4)
    assert collectives.ddp(small, 2) == 4 * 110  # each of two sends half of the sums, and half of what they come to
    assert collectives.fsdp(small, 2) == (2 * 2 * 100 + 4 * 10 + 4 * 110) / 2
    assert collectives.tensor(small, 2, 3) == 4 * 5 * 2 * 3 * 4
