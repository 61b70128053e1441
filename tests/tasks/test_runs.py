"""A run's identity: its folder is its own, its data is known, and a resume that is refused changes nothing."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from command import contents, dies_in_its_second_epoch, refused, rows, small
from PIL import Image
from toys import Sentences, network

import zoo
from tasks import commands, runs
from tasks.image_classification import main
from tasks.options import EngineOptions, UserError
from zoo import files

RESUME = ["--name", "a", "--resume"]


@pytest.fixture
def killed(pictures, tmp_path, monkeypatch, capsys):
    """A run of two epochs that was stopped before its second, and the folder of its own pictures."""
    shutil.copytree(pictures, tmp_path / "x")

    with monkeypatch.context() as patch:
        dies_in_its_second_epoch(patch)
        assert main([*small(tmp_path / "x", tmp_path / "runs"), "--epochs", "2"]) == 130
    assert "--name a --resume goes on" in capsys.readouterr().err
    return tmp_path


def rename_a_class(root):
    for split in ("train", "test"):
        (root / split / "dark").rename(root / split / "murky")


def change_a_pixel(root):
    path = root / "train" / "dark" / "00.png"
    with Image.open(path) as picture:
        picture.load()
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(path)


def swap_two_labels(root):
    one, other = (root / "test" / name / "00.png" for name in ("dark", "light"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def add_a_picture(root):
    shutil.copy(root / "train" / "dark" / "00.png", root / "train" / "dark" / "zz.png")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rename_a_class, "classes changed from dark, light to light, murky"),
        (change_a_pixel, "train has other contents"),
        (swap_two_labels, "has other contents"),
        (add_a_picture, "train images changed from 13 to 14"),
    ],
)
def test_other_data_is_refused_by_what_differs_and_nothing_is_written(killed, capsys, change, told):
    change(killed / "x")
    line = refused(capsys, killed / "runs", "train", "--runs_dir", killed / "runs", *RESUME)
    assert told in line, line


def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(killed, capsys):
    last = killed / "runs" / "a" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    (killed / "runs" / "a" / ".half.part").touch()
    assert "last.safetensors" in refused(capsys, killed / "runs", "train", "--runs_dir", killed / "runs", *RESUME)


def test_data_that_has_moved_goes_on_and_the_run_says_what_it_is_made_of(killed, capsys):
    folder = killed / "runs" / "a"
    first = files.read_json(folder / "options.json")["about"]
    (killed / "x").rename(killed / "y")
    assert "nothing" not in refused(capsys, killed / "runs", "train", "--runs_dir", killed / "runs", *RESUME)
    assert main(["train", "--runs_dir", str(killed / "runs"), *RESUME, "--data", f"folder:{killed / 'y'}"]) == 0
    about = files.read_json(folder / "options.json")["about"]
    assert about["data"]["classes"] == ["dark", "light"]
    assert about["data"]["train"]["images"] == 13
    assert first["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {key: about[key] for key in first} == first, "a resume has changed what the run began with"
    assert about["resumed"][0]["step"] == 3
    assert [row["epoch"] for row in rows(folder)] == [1, 2]


def test_more_epochs_than_planned_go_on(finished, tmp_path, capsys):
    runs_dir = tmp_path / "runs"
    shutil.copytree(finished[0].parent, runs_dir)
    where = ["train", "--runs_dir", str(runs_dir), *RESUME]
    assert "--epochs 1 is less than the run's 2" in refused(capsys, runs_dir, *where, "--epochs", 1)
    assert main([*where, "--epochs", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 epochs in place of 2: the cosine schedule is now that of 3; the learning rate was" in said
    assert [row["epoch"] for row in rows(runs_dir / "a")] == [1, 2, 3]
    assert files.read_json(runs_dir / "a" / "summary.json")["epochs"] == 3
    before = contents(runs_dir)
    assert main(where) == 0
    assert contents(runs_dir) == before, "the longer run is the run now"


def test_each_run_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: runs.make_folder(tmp_path / "runs" / "same", True), range(24)))
    assert len(set(made)) == 24
    assert sorted(made) == sorted(str(path) for path in (tmp_path / "runs").iterdir())
    assert runs.make_folder(tmp_path / "runs" / "same", False) is None


def test_runs_of_one_second_are_two(tmp_path, monkeypatch):
    """Their default name is the same: a number follows. A name that was given is refused before any work."""
    monkeypatch.setitem(zoo.MODELS, "toy", network)
    options = {"runs_dir": str(tmp_path), "epochs": 1, "device": "cpu"}
    for _ in range(2):
        runs.train(EngineOptions, options, lambda _: "a", lambda *_: (Sentences(), zoo.create("toy")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-2"]
    assert files.read_json(tmp_path / "a-2" / "options.json")["name"] == "a-2"
    with pytest.raises(UserError, match="a exists already"):
        runs.train(EngineOptions, {**options, "name": "a"}, lambda _: "b", lambda *_: pytest.fail("work was done"))


def test_a_name_that_was_taken_while_data_was_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "toy", network)

    def begin(options, folder):
        folder.mkdir()
        return Sentences(), zoo.create("toy")

    with pytest.raises(UserError, match="a exists already"):
        runs.train(EngineOptions, {"runs_dir": str(tmp_path), "name": "a", "device": "cpu"}, lambda _: "b", begin)
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("empty", ["train", "valid"])
def test_an_empty_split_is_known_before_the_first_step(tmp_path, monkeypatch, empty):
    monkeypatch.setitem(zoo.MODELS, "toy", network)
    task = Sentences(**{"size" if empty == "train" else "valid_size": 0})
    name = {"train": "training", "valid": "validation"}[empty]
    with pytest.raises(UserError, match=f"{name} set must be not empty, got '0 sentences'"):
        runs.train(
            EngineOptions, {"runs_dir": str(tmp_path / "r"), "device": "cpu"}, lambda _: "b", lambda *_: (task, zoo.create("toy"))
        )
    assert not (tmp_path / "r").exists()


def test_differences_are_told_by_name():
    before = {"classes": ["a", "b"], "train": {"images": 3, "fingerprint": "x"}, "tokenizer": "t"}
    runs.require_same(before, {**before, "classes": ("a", "b")}, "runs/a")
    runs.require_same(None, before, "runs/a")  # of an older version
    with pytest.raises(UserError) as caught:
        runs.require_same(
            before, {"classes": ["b", "a"], "train": {"images": 4, "fingerprint": "y"}, "valid": {"images": 1}}, "runs/a"
        )
    assert str(caught.value) == (
        "--resume: the data is not that of runs/a: classes changed from a, b to b, a; train images changed from 3 to 4; train "
        "has other contents; tokenizer changed from t to None; valid images changed from None to 1"
    )


def test_an_older_run_without_its_data_goes_on(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "a")
    options = files.read_json(tmp_path / "a" / "options.json")
    del options["about"]
    files.write_json(tmp_path / "a" / "options.json", options)
    assert main(["train", "--runs_dir", str(tmp_path), *RESUME, "--epochs", "3"]) == 0
    about = files.read_json(tmp_path / "a" / "options.json")["about"]
    assert about["data"]["classes"] == ["dark", "light"]
    assert json.dumps(about["resumed"])


@pytest.mark.processes
def test_two_ranks_without_a_name_share_one_folder(pictures, tmp_path, launch):
    device = [] if torch.accelerator.is_available() else ["--device=auto"]  # which is the CPU here
    done = launch(*small(pictures, tmp_path)[:-2], "--epochs=1", *device, ranks=2)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.iterdir()
    assert (made / "summary.json").exists()


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path, pictures, capsys):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("important")
    words = [*small(pictures, tmp_path, "notes"), "--resume"]
    assert "notes is no run's folder: it has no options.json" in refused(capsys, tmp_path, *words)


def test_a_run_of_another_device_goes_on_here(finished, tmp_path, capsys):
    """--device is free: what the run was begun with is not asked for."""
    shutil.copytree(finished[0], tmp_path / "a")
    path = tmp_path / "a" / "options.json"
    files.write_json(path, files.read_json(path) | {"device": "cuda"})
    if not torch.cuda.is_available():
        assert "--device cuda: torch sees no GPU here" in refused(capsys, tmp_path, "train", "--runs_dir", tmp_path, *RESUME)
    assert main(["train", "--runs_dir", str(tmp_path), *RESUME, "--device", "cpu"]) == 0
    assert "more --epochs go on" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": None}, {"step": "x"}, {"epoch": 1.5}, {"history": 5}, {"history": [{"epoch": 1}]}, {"history": [5]},
        {"sums": [1]}, {"seconds": "long"},
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_values_is_refused(killed, capsys, change):
    last = killed / "runs" / "a" / "last.safetensors"
    metadata = files.read_metadata(last)
    progress = json.loads(metadata["progress"]) | change
    if change == {"sizes": None}:
        del progress["sizes"]
    files.write_tensors(last, files.read_tensors(last), metadata | {"progress": json.dumps(progress)})
    line = refused(capsys, killed / "runs", "train", "--runs_dir", killed / "runs", *RESUME)
    assert "last.safetensors is damaged, or no checkpoint of this run" in line


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_what_all_processes_refuse_the_first_one_says(monkeypatch, tmp_path, capsys, rank, lines):
    monkeypatch.setenv("RANK", rank)
    assert main(["--data", "folder:nowhere", "--runs_dir", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize(
    "error", [OSError("disk is full"), UserError("a.png cannot be read"), RuntimeError("CUDA out of memory")]
)
def test_what_one_process_meets_it_says_itself(monkeypatch, capsys, error):
    def fails(given):
        raise error

    monkeypatch.setenv("RANK", "1")
    program = {"train": commands.Command(EngineOptions, "", fails)}
    assert commands.main("x", program, []) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("name", ["a/b", "..", "/tmp/x"])
def test_a_name_is_no_path(tmp_path, pictures, capsys, name):
    assert "--name must be a name, not a path" in refused(capsys, tmp_path, *small(pictures, tmp_path, name))


def test_what_a_run_said_of_its_data_is_kept(finished):
    told = files.read_json(finished[0] / "options.json")["about"]["told"]
    assert any("there is no validation split" in line for line in told)
